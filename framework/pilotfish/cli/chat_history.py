"""Where what was typed is kept between runs: a file that only its owner reads.

Knows: the platform's folder and the file's mode. Does not know: what is typed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.history import History

_MOST_BYTES = 1_000_000
"""Of the file when a chat begins; of a longer one the newest half stays."""


def history_path() -> Path:
    """The file, in the folder that the platform has for such things; XDG_STATE_HOME comes first."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):  # as the specification says: a relative one is as good as none
        folder = Path(named)
    elif sys.platform == "darwin":
        folder = Path("~/Library/Application Support").expanduser()
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser()
    else:
        folder = Path("~/.local/state").expanduser()
    return folder / "pilotfish" / "chat_history"


def open_history(path: Path) -> History:
    """The history in a file, made where there is none. Raises OSError where it cannot be kept."""
    from prompt_toolkit.history import FileHistory

    class PrivateHistory(FileHistory):
        """A line that cannot be written (a full disk) is remembered up to the end of the run."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        os.chmod(path, 0o600)
        if (size := file.seek(0, os.SEEK_END)) > _MOST_BYTES:
            file.seek(size - _MOST_BYTES // 2)
            kept = file.read()
            file.seek(0)
            file.truncate()
            file.write(kept[kept.find(b"\n# ") + 1 :])  # from the beginning of an entry
    return PrivateHistory(str(path))
