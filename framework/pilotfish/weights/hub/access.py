"""Asking the hub: one request, the files of a commit, one piece of a file.

Knows: requests, and the layout of the local cache. Does not know: formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import attrs

from pilotfish.errors import CheckpointError
from pilotfish.weights.hub.reasons import reason

T = TypeVar("T")

_WHOLE, _PAST_THE_END = 200, 416
"""HTTP's codes for the whole file and for a range behind its end."""


@attrs.frozen
class RemoteFile:
    """One file of one commit of a repository on the hub."""

    repo: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"{self.repo}/{self.name}"

    def read(self, begin: int, count: int) -> tuple[bytes, int]:
        """Bytes from `begin` on, fewer at the end -> they and the size of the whole file.

        Raises CheckpointError, as `asked`.
        """
        return asked(self.repo, lambda _: self._read(begin, count))

    def _read(self, begin: int, count: int) -> tuple[bytes, int]:
        from huggingface_hub import constants, get_session, hf_hub_url

        utils: Any = import_module("huggingface_hub.utils")
        headers = utils.build_hf_headers()
        headers |= {"Range": f"bytes={begin}-{begin + count - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repo, self.name, revision=self.commit)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            said = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code == _PAST_THE_END and said.isdigit():
                return b"", int(said)
            if response.status_code >= 400:
                response.read()
            utils.hf_raise_for_status(response)
            skipped = 0
            if response.status_code == _WHOLE:  # no ranges there
                skipped, said = begin, response.headers.get("Content-Length", "")
            if not said.isdigit():
                raise CheckpointError(f"{self}: the hub does not say how large it is")
            found = bytearray()
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= skipped + count:
                    break
            return bytes(found[skipped : skipped + count]), int(said)

    @property
    def place(self) -> Path:
        """Where it lies in the cache, or will lie."""
        return cache_folder(self.repo) / "snapshots" / self.commit / self.name


def cache_folder(repo: str) -> Path:
    """Of a repository, in the local cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def cached_commit(repo: str, revision: str | None) -> Path | None:
    """The directory of a branch's, tag's or commit's files in the cache; None without one."""
    from huggingface_hub import constants

    folder = cache_folder(repo)
    ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    try:
        commit = ref.read_text().strip() if ref.is_file() else revision
        found = folder / "snapshots" / commit if commit else None
        return found if found is not None and found.is_dir() else None
    except OSError:
        return None


@attrs.frozen
class RemoteCommit:
    """One commit of a repository on the hub, with all its files.

    id: the commit's. sizes: file -> bytes. blobs: file -> its name among the cache's blobs, where
    that is known.
    """

    repo: str
    id: str
    sizes: Mapping[str, int]
    blobs: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where its files lie in the cache, or will lie."""
        return cache_folder(self.repo) / "snapshots" / self.id


def remote_commit(repo: str, revision: str | None) -> RemoteCommit:
    """What a branch, tag or commit is on the hub. Raises CheckpointError, as `asked`."""
    from huggingface_hub import constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    found = asked(
        repo,
        lambda api: api.model_info(repo, revision=revision, timeout=timeout, files_metadata=True),
    )
    files = found.siblings or ()
    blobs = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    return RemoteCommit(
        repo,
        str(found.sha),
        {file.rfilename: file.size or 0 for file in files},
        {name: blob for name, blob in blobs.items() if blob},
    )


def asked(repo: str, ask: Callable[[Any], T]) -> T:
    """What the hub answers. Raises CheckpointError for network, permissions, cache, unknown id."""
    from huggingface_hub import HfApi

    try:
        return ask(HfApi())
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{repo}: {reason(repo, error)}") from error
