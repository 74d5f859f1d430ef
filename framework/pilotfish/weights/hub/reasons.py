"""Why the hub, the network or the cache did not do what was asked, and what helps.

Knows: what may go wrong between here and there. Does not know: what was asked, or formats.
"""

from __future__ import annotations

import errno
import re
import textwrap
from collections.abc import Iterator

from pilotfish.errors import CheckpointError

_LOG_IN = "`hf auth login`, or the environment variable HF_TOKEN"
_NOT_HERE = "no such file or directory here, not whole in the local cache, and it cannot be fetched"
_OFFLINE = (
    f"{_NOT_HERE} from the hub, as the environment variable HF_HUB_OFFLINE is set; unset it, or "
    "give a path"
)
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _THEIR_FAULT = 401, 403, 404, 429, 500
"""HTTP's codes; from the last on, the server's own faults."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_SAID = 160
_ADDRESS = re.compile(r"\s*(?:for|from|at)?\s*(?:url)?:?\s*['\"<(]?https?://[^\s'\">)]+['\">)]?")


def reason(repo: str, error: BaseException) -> str:
    """What went wrong and what to do, on one line."""
    from huggingface_hub import constants

    causes = list(_chain(error))
    found = _refused(repo, causes) or _failed(causes)
    if found is not None:
        return found
    if constants.HF_HUB_OFFLINE:
        return _OFFLINE
    cause = causes[-1]
    said = " ".join(_ADDRESS.sub("", str(cause)).split()) or type(cause).__name__
    return (
        f"{_NOT_HERE} from the hub ({textwrap.shorten(said, _MOST_SAID, placeholder=' ...')}); "
        "check the network, or give a path"
    )


def is_refusal(error: CheckpointError) -> bool:
    """Whether the hub was reached and said no, so that what is in the cache is not asked."""
    refusals = (_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND)
    return any(status in refusals for status in _statuses(_chain(error)))


def _refused(repo: str, causes: list[BaseException]) -> str | None:
    """What to say where the hub does not give it to this user; None where that is not so."""
    from huggingface_hub import constants, errors

    statuses = set(_statuses(causes))
    page, tokens = f"{constants.ENDPOINT}/{repo}", f"{constants.ENDPOINT}/settings/tokens"
    is_gated = _is(causes, errors.GatedRepoError)
    refusals = (
        (
            is_gated and _FORBIDDEN in statuses,
            "access is restricted on the hub, and the account that is logged in has none yet "
            f"(403); ask for it on {page} and wait for the answer. A fine-grained token must be "
            "allowed to read gated repositories too",
        ),
        (
            is_gated,
            f"access is restricted on the hub; ask for it on {page}, then log in: {_LOG_IN}",
        ),
        (
            _is(causes, errors.RevisionNotFoundError),
            "the repository has no such branch, tag or commit; check what stands behind the @",
        ),
        (
            _is(causes, errors.RepositoryNotFoundError),
            "no such file or directory here, and no such repository on the hub, or a private one; "
            f"check the name, or log in: {_LOG_IN}",
        ),
        (
            _UNAUTHORIZED in statuses,
            "the hub refuses the access token, which is wrong or has expired (401); make another "
            f"on {tokens} and log in with it: {_LOG_IN}. A public model needs none: unset "
            "HF_TOKEN, or `hf auth logout`",
        ),
        (
            _FORBIDDEN in statuses,
            "the hub does not let the account that is logged in read it (403); see on "
            f"{tokens} what the access token may do, or log in with another: {_LOG_IN}",
        ),
    )
    return next((said for holds, said in refusals if holds), None)


def _failed(causes: list[BaseException]) -> str | None:
    """What to say where the hub or the cache's disk is at fault; None for neither."""
    from huggingface_hub import constants

    for status in _statuses(causes):
        if status == _TOO_MANY:
            return (
                "the hub asks to wait (429, too many requests); try again later, or log in, which "
                f"allows more: {_LOG_IN}"
            )
        if status >= _THEIR_FAULT:
            return f"the hub's own fault ({status}); try again later"
    for cause in causes:
        if not isinstance(cause, OSError) or cause.errno is None:
            continue
        if cause.errno in _FULL:
            return (
                f"the disk of the cache is full ({constants.HF_HUB_CACHE}); set HF_HOME to another"
            )
        if cause.filename is not None or cause.errno == errno.EIO:  # a socket has no name
            return (
                f"the cache folder {constants.HF_HUB_CACHE} cannot be written ({cause.strerror}); "
                "set HF_HOME to a folder that can"
            )
    return None


def _is(causes: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _statuses(causes: Iterator[BaseException] | list[BaseException]) -> Iterator[int]:
    """HTTP's codes of errors."""
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            yield status
