"""Asking the hub: one request, one piece of a file, and what is said when it does not answer.

Knows: what may go wrong between here and there, and the local cache. Does not know: formats.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import attrs

from pilotfish.errors import CheckpointError

T = TypeVar("T")

_WHOLE, _PAST_THE_END = 200, 416
"""HTTP's codes for the whole file and for a range behind its end."""
_LOG_IN = "`hf auth login`, or the environment variable HF_TOKEN"


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
        headers.update(
            {"Range": f"bytes={begin}-{begin + count - 1}", "Accept-Encoding": "identity"}
        )
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
    except OSError:
        return None
    found = folder / "snapshots" / commit if commit else None
    return found if found is not None and found.is_dir() else None


def commit_and_files(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """What a branch, tag or commit is on the hub -> the commit's id, and every file of it."""
    from huggingface_hub import constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    found = asked(repo, lambda api: api.model_info(repo, revision=revision, timeout=timeout))
    return str(found.sha), [file.rfilename for file in found.siblings or ()]


def download(
    repo: str, revision: str | None, names: list[str], without: list[str] | None = None
) -> Path:
    """Fetches what is not yet in the cache, names or patterns -> the commit's directory there."""
    return Path(
        asked(
            repo,
            lambda api: api.snapshot_download(
                repo, revision=revision, allow_patterns=names, ignore_patterns=without
            ),
        )
    )


def asked(repo: str, ask: Callable[[Any], T]) -> T:
    """What the hub answers. Raises CheckpointError for network, permissions, cache, unknown id."""
    from huggingface_hub import HfApi

    try:
        return ask(HfApi())
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{repo}: {_reason(repo, error)}") from error


def is_refusal(error: CheckpointError) -> bool:
    """Whether the hub was reached and said no, so that what is in the cache is not asked."""
    return any(status in (401, 403, 404) for status in _statuses(error))


_OFFLINE = (
    "no such file or directory here, not whole in the local cache, and it cannot be fetched from "
    "the hub, as the environment variable HF_HUB_OFFLINE is set; unset it, or give a path"
)


def _reason(repo: str, error: Exception) -> str:
    """What went wrong and what to do, on one line."""
    from huggingface_hub import constants, errors

    refusals = {
        errors.GatedRepoError: (
            f"access is restricted on the hub; ask for it on {constants.ENDPOINT}/{repo}, then log "
            f"in: {_LOG_IN}"
        ),
        errors.RevisionNotFoundError: (
            "the repository has no such branch, tag or commit; check what stands behind the @"
        ),
        errors.RepositoryNotFoundError: (
            "no such file or directory here, and no such repository on the hub, or a private one; "
            f"check the name, or log in: {_LOG_IN}"
        ),
    }
    for kind, refusal in refusals.items():
        if isinstance(error, kind):
            return refusal
    if 401 in _statuses(error):
        return (
            "the hub refuses the access token, which is wrong or has expired (401); make another "
            f"on {constants.ENDPOINT}/settings/tokens and log in with it: {_LOG_IN}. A public "
            "model needs none: unset HF_TOKEN, or `hf auth logout`"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of the cache is full ({constants.HF_HUB_CACHE}); set HF_HOME to another"
    if constants.HF_HUB_OFFLINE:
        return _OFFLINE
    said = " ".join(str(error).split()) or type(error).__name__
    cause = " ".join(str(error.__cause__).split()) if error.__cause__ else ""
    return (
        "no such file or directory here, not whole in the local cache, and it cannot be fetched "
        f"from the hub ({said:.160}{f'; {cause:.80}' if cause else ''}); check the network, or "
        "give a path"
    )


def _statuses(error: BaseException) -> Iterator[int]:
    """HTTP's codes of an error and of what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            yield status
        cause = cause.__cause__
