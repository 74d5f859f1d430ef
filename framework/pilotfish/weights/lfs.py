"""Git LFS pointers: small texts that stand in a clone where git-lfs has not fetched the files.

Knows: how a pointer begins. Does not know: formats.
"""

from __future__ import annotations

import re
from pathlib import Path

from pilotfish.errors import CheckpointError
from pilotfish.weights.anew import get_again, in_cache

_HEAD = b"version https://git-lfs.github.com/spec/"
_MOST_BYTES = 1024
"""The format's own limit."""
_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)
_MOST_NAMED = 3


def refuse_pointers(path: Path) -> None:
    """Raises CheckpointError naming what of a file, or of a directory's files, is a pointer."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    sizes = {file.name: size for file in files if (size := _size_behind(file)) is not None}
    if not sizes:
        return
    if in_cache(path):
        broken = path / next(iter(sizes)) if path.is_dir() else path
        raise CheckpointError(
            f"{path}: {', '.join(sizes)}: a Git LFS pointer, not the file that it stands for; so "
            f"the hub has it: {get_again(broken)}"
        )
    names = list(sizes)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    raise CheckpointError(
        f"{path}: {', '.join(names[:_MOST_NAMED])}{more}: Git LFS pointers, which stand for files "
        f"of {sum(sizes.values())} bytes that were not fetched; run `git lfs install` and `git lfs "
        "pull` in that directory, or fetch it from the hub again"
    )


def refuse_pointer(file: object, head: bytes) -> None:
    """As `refuse_pointers`, of a file on the hub whose first bytes are `head`."""
    if head.startswith(_HEAD):
        raise CheckpointError(
            f"{file}: a Git LFS pointer, not the file that it stands for; {get_again(file)}"
        )


def _size_behind(file: Path) -> int | None:
    """Bytes of the file that a pointer stands for; None for any other file."""
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return None
        text = file.read_bytes()
    except OSError:  # whoever reads it says why it cannot be read
        return None
    if not text.startswith(_HEAD):
        return None
    found = _SIZE.search(text)
    return int(found[1]) if found else 0
