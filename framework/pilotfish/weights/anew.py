"""What to do about a file that turned out broken: it depends on where it lies.

Knows: the layout of the hub's cache. Does not know: formats.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path


def get_again(file: object) -> str:
    """The end of a message about a broken file. file: a Path, or what stands for one on the hub.

    A file of the hub's cache is kept whatever it holds, so the one to delete is named.
    """
    if not isinstance(file, Path):
        return "it is so on the hub: take another repository, or ask who published it"
    if in_cache(file):
        return (
            f"delete {file.resolve()}, and it is fetched anew; if it comes so again, take another "
            "repository"
        )
    return "get it again"


def in_cache(path: Path) -> bool:
    """Whether it is a file, or the directory, of a commit in the hub's cache."""
    folders = [parent.name for parent in (path, *path.parents)]
    return any(
        name == "snapshots" and above.startswith("models--") for name, above in pairwise(folders)
    )
