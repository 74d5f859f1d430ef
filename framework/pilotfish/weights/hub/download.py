"""Fetching files of one commit into the local cache, one after another.

Knows: how much room they take, and what is there already. Does not know: what is in them.
One at a time and in the caller's thread, so that Ctrl-C ends it at once; the library that fetches
a file takes several connections for a large one itself.
"""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError
from pilotfish.weights.hub.access import RemoteCommit, asked, cache_folder

LAST = "config.json"
"""Fetched after all others: where it is in the cache, so are the small files beside it."""
_SHOWN = 10_000_000
"""Bytes of a file from which a bar is shown."""


def fetch(commit: RemoteCommit, names: Iterable[str], revision: str | None = None) -> Path:
    """Puts files of the commit in the cache -> the commit's directory there.

    revision: the branch or tag by which the user asked for it, for the time without a network.
    Nothing is fetched where there is too little room. Raises CheckpointError, as `asked`.
    """
    wanted = sorted(names, key=lambda name: (name == LAST, name))
    asked(commit.repo, lambda api: _fetch(api, commit, wanted))
    _remember(commit, revision)
    return commit.folder


def _fetch(api: Any, commit: RemoteCommit, names: list[str]) -> None:
    missing = [name for name in names if not (commit.folder / name).exists()]
    _check_room(commit, missing)
    if not commit.folder.is_dir():
        commit.folder.mkdir(parents=True)
    silent = getattr(import_module("huggingface_hub.utils"), "silent_tqdm", None)
    for name in missing:
        bar = {} if silent is None or commit.sizes[name] >= _SHOWN else {"tqdm_class": silent}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")
            api.hf_hub_download(commit.repo, name, revision=commit.id, **bar)


def _check_room(commit: RemoteCommit, names: list[str]) -> None:
    """Raises CheckpointError when the disk of the cache has no room for these files."""
    from huggingface_hub import constants

    blobs = cache_folder(commit.repo) / "blobs"
    needed = sum(
        commit.sizes[name]
        for name in names
        if not (name in commit.blobs and (blobs / commit.blobs[name]).exists())
    )
    folder = Path(constants.HF_HUB_CACHE)
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if needed == 0 or there is None:
        return
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CheckpointError(
            f"{commit.repo}: needs {_size(needed)} in {folder}, where {_size(free)} are free; make "
            "room, or set HF_HOME to a folder on another disk"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _remember(commit: RemoteCommit, revision: str | None) -> None:
    """Writes which commit the branch or tag is, where the folder can be written."""
    from huggingface_hub import constants

    name = revision or constants.DEFAULT_REVISION
    if name == commit.id:
        return
    ref = cache_folder(commit.repo) / "refs" / name
    try:
        if ref.is_file() and ref.read_text() == commit.id:
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
        new.write_text(commit.id)
        new.replace(ref)
    except OSError:  # what a network says each time
        pass
