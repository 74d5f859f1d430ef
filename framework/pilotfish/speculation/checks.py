"""What a drafter returned, checked before it is used.

Knows: what a proposer owes (speculation/proposer.py), what probabilities are. Does not know:
drafters, or what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pilotfish.batch import Proposal
from pilotfish.config.checks import is_int
from pilotfish.errors import PilotfishError

_MOST_SHOWN = 80
_MOST_OFF = 1e-4
"""A row of float32 probabilities adds up to 1 within this, whatever the order of the additions."""


def fault_of(found: Any, num_requests: int, vocab_size: int) -> tuple[str, str] | None:
    """What `propose` returned and what was wanted, where it is of the wrong kind; None where not.

    found: what it returned. vocab_size: of the target's logits. How many tokens there are, and
    whether they are ids of the target, is not looked at: no text depends on it.
    """
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        return _shown(found), f"a list with one Proposal for each of {num_requests} requests"
    if len(found) != num_requests:
        return f"{len(found)} proposals", f"one for each of {num_requests} requests"
    for place, proposal in enumerate(found):
        fault = _fault_of_one(proposal, vocab_size)
        if fault is not None:
            return f"{fault[0]} for request {place}", fault[1]
    return None


def check_proposals(proposer: object, found: Any, num_requests: int, vocab_size: int) -> None:
    """Raises PilotfishError naming the drafter's class, what it returned and what was wanted."""
    fault = fault_of(found, num_requests, vocab_size)
    if fault is not None:
        got, wanted = fault
        raise PilotfishError(f"{type(proposer).__name__}.propose returned {got}; wanted {wanted}")


def _fault_of_one(proposal: Any, vocab_size: int) -> tuple[str, str] | None:
    if not isinstance(proposal, Proposal):
        return _shown(proposal), "a pilotfish.speculation.Proposal"
    tokens: Any = proposal.tokens
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence):
        return f"tokens {_shown(tokens)}", "a list of token ids"
    for token in tokens:
        if not is_int(token):
            return f"a token {_shown(token)}", "token ids that are ints"
    return None if proposal.probs is None else _fault_of_probs(proposal.probs, tokens, vocab_size)


def _fault_of_probs(probs: Any, tokens: Sequence[int], vocab_size: int) -> tuple[str, str] | None:
    num_tokens = len(tokens)
    wanted = f"probs [{num_tokens}, {vocab_size}] of floats, one for each token, or None"
    if not isinstance(probs, torch.Tensor):
        return f"probs {_shown(probs)}", wanted
    if tuple(probs.shape) != (num_tokens, vocab_size) or not probs.is_floating_point():
        return f"probs {list(probs.shape)} of {str(probs.dtype).removeprefix('torch.')}", wanted
    places = [min(max(token, 0), vocab_size - 1) for token in tokens]
    columns = torch.tensor(places, dtype=torch.int64, device=probs.device)[:, None]
    facts = (
        probs.sum(-1, True, dtype=torch.float64),
        probs.amin(-1, True),
        probs.gather(-1, columns),
    )
    slack = max(_MOST_OFF, torch.finfo(probs.dtype).eps)
    rows = torch.cat([fact.double() for fact in facts], dim=1).tolist()  # the one wait for a GPU
    for row, (token, (total, low, own)) in enumerate(zip(tokens, rows, strict=True)):
        odd = ""
        if not math.isfinite(total):
            odd = "holds NaN or an infinity"
        elif low < 0:
            odd = f"has {low:.3g}, which is below 0"
        elif abs(total - 1) > slack:
            odd = f"adds up to {total:.6g}"
        elif own == 0 and 0 <= token < vocab_size:
            odd = f"gives its own token {token} the probability 0"
        if odd:
            return f"probs whose row {row} {odd}", (
                "in each row the probabilities that its token was drawn from: finite, none below "
                "0, of sum 1, above 0 at the token; or None for a token that nothing was drawn for"
            )
    return None


def _shown(value: object) -> str:
    """A value with its kind, cut where it is long."""
    text = " ".join(repr(value).split())
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}..."
    return text if value is None else f"{text} ({type(value).__name__})"
