"""The user's cache folder, and small JSON files in it that any number of processes read and write.

Knows: where the folder is, and that neither it nor a file need be any good. Does not know: what is
kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

VARIABLE = "PILOTFISH_CACHE_DIR"
"""Another folder than the user's; "none": nothing is kept."""
LARGEST = 1 << 20
"""Bytes of a file that is read: ours are far smaller."""


def cache_folder() -> Path | None:
    """The folder, which need not be there; None where nothing is to be kept, or nowhere."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named == "none" else Path(os.path.expanduser(named))
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # as the specification says: a relative one is as good as none
        return Path(xdg) / "pilotfish"
    try:
        return Path("~/.cache/pilotfish").expanduser()
    except RuntimeError:  # a user without a home
        return None


def read_json(path: Path) -> Any:
    """What a file holds; None for one that is damaged, another user's, no file, or unreadable."""
    with suppress(OSError, ValueError, RecursionError):
        about = path.stat()
        is_ours = about.st_uid in {0, os.geteuid()}  # what another user says is not believed
        if is_ours and S_ISREG(about.st_mode) and about.st_size <= LARGEST:  # a pipe would wait
            return json.loads(path.read_bytes())
    return None


def replace_json(path: Path, value: Any) -> None:
    """Writes a file, whole or not at all, and beside others that do; nothing where that fails."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with open(handle, "w", encoding="ascii") as file:
                json.dump(value, file, indent=1)
            os.replace(written, path)
        except OSError:
            os.unlink(written)
