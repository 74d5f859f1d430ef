"""The speculative step: which rows are judged, which count, and what is drafted after them.

Knows: how the rows of a pass belong to requests. Does not know: rules, drafters or engines.
Axis letters: B requests, T packed rows, R rows of logits, V vocabulary, F feature width.

The target runs the rows that count for certain and those of the draft; `verify` says which tokens
follow; `propose` hands the rows that count to the drafter and asks for more. Everything is computed
before any of it is committed: an exception anywhere leaves target and draft at the length they had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch

from pilotfish.batch import Proposal
from pilotfish.speculation.acceptance import Acceptance, Accepted, VerifyRequest
from pilotfish.speculation.checks import check_proposals
from pilotfish.speculation.proposer import DraftBatch, DraftRequest, Proposer

if TYPE_CHECKING:
    from pilotfish.state import KVCacheInputs


def verify(
    rule: Acceptance,
    logits: torch.Tensor,
    requests: Sequence[VerifyRequest],
    ends: Iterable[int],
) -> list[Accepted]:
    """What follows the requests that sample in a pass.

    logits: [R, V] float32, of the whole pass. ends: after the last row of logits of each request.
    """
    if not requests:
        return []
    rows: list[int] = []
    for end, request in zip(ends, requests, strict=True):
        rows.extend(range(end - len(request.rows), end))
    if len(rows) != logits.shape[0]:
        logits = logits[torch.tensor(rows, device=logits.device)]
    return rule.decide(logits, requests)


def propose(
    proposer: Proposer,
    requests: Sequence[DraftRequest | None],
    *,
    row_counts: Sequence[int],
    hidden_states: torch.Tensor | None,
    kv_inputs: Callable[[Sequence[str], Sequence[int], str, Sequence[int]], KVCacheInputs],
    vocab_size: int,
) -> list[Proposal | None]:
    """Hands the rows that count to the drafter; what it proposes for each request.

    requests: of the pass, B; None for one that goes no further, and so is its proposal.
    row_counts: rows of each in the pass. hidden_states: [T, F] of the pass, T their sum, or None.
    vocab_size: of the target's logits. Raises PilotfishError naming the drafter and what it
    returned where that is no list of proposals.
    """
    going, places = [], []
    for place, request in enumerate(requests):
        if request is not None:
            going.append(request)
            places.append(place)
    proposals: list[Proposal | None] = [None] * len(requests)
    if not going:
        return proposals
    batch = DraftBatch(
        requests=going,
        features=None
        if hidden_states is None
        else _counted_rows(requests, row_counts, hidden_states),
        kv_inputs=kv_inputs,
    )
    found = proposer.propose(batch)
    check_proposals(proposer, found, len(going), vocab_size)
    for place, request, proposal in zip(places, going, found, strict=True):
        tokens = tuple(proposal.tokens)  # of our own: a drafter may fill its list again
        proposals[place] = attrs.evolve(proposal, tokens=tokens).first(request.num_draft_tokens)
    return proposals


def _counted_rows(
    requests: Sequence[DraftRequest | None],
    row_counts: Sequence[int],
    hidden_states: torch.Tensor,
) -> torch.Tensor:
    """[T', F]: the rows that count, of the pass's [T, F]."""
    rows: list[int] = []
    first = 0
    for request, count in zip(requests, row_counts, strict=True):
        if request is not None:
            rows.extend(range(first, first + request.num_new))
        first += count
    if len(rows) == hidden_states.shape[0]:
        return hidden_states
    return hidden_states[torch.tensor(rows, device=hidden_states.device)]
