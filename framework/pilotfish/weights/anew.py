"""What to do about a file that turned out broken: it depends on where it lies.

Knows: the layout of the hub's cache. Does not know: formats.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

_MOST_READ = 1 << 30
"""Bytes of a file that is compared with what the hub says it is: within a second or two."""
_ON_THE_HUB = "it is so on the hub: take another repository, or ask who published it"


def get_again(file: object) -> str:
    """The end of a message about a broken file. file: a Path, or what stands for one on the hub.

    A file of the hub's cache is kept whatever it holds, so the one to delete is named, unless the
    hub has it so.
    """
    if not isinstance(file, Path) or (in_cache(file) and _is_as_published(file.resolve())):
        return _ON_THE_HUB
    if in_cache(file):
        return (
            f"delete {file.resolve()}, and it is fetched anew; if it comes so again, take another "
            "repository"
        )
    return "get it again"


def _is_as_published(blob: Path) -> bool:
    """Whether a file of the cache is what its name says, a digest that the hub gave it.

    SHA-256 of large files, git's of small ones, and of mirrors the plain SHA-1.
    """
    try:
        size = blob.stat().st_size
        if size > _MOST_READ:
            return False
        with blob.open("rb") as file:
            if len(blob.name) == hashlib.sha256().digest_size * 2:
                return hashlib.file_digest(file, "sha256").hexdigest() == blob.name
            data = file.read()
    except OSError:
        return False
    git = b"blob %d\0" % size + data
    return blob.name in [hashlib.sha1(text).hexdigest() for text in (git, data)]


def in_cache(path: Path) -> bool:
    """Whether it is a file, or the directory, of a commit in the hub's cache."""
    folders = [parent.name for parent in (path, *path.parents)]
    return any(
        name == "snapshots" and above.startswith("models--") for name, above in pairwise(folders)
    )
