"""Speculation: what a pass verifies and drafts, for which requests, and what that cost.

Knows: widths, rows that are reserved, times. Does not know: drafters, rules of acceptance, models.
Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import attrs
import torch

from pilotfish.engine.request import Request
from pilotfish.engine.step_result import StepResult
from pilotfish.protocols import ModelOutputs
from pilotfish.speculation import DraftRequest, Proposal, Proposer, WidthPolicy
from pilotfish.speculation.acceptance import Acceptance
from pilotfish.speculation.step import propose, verify
from pilotfish.state import StateManager


@attrs.frozen(kw_only=True)
class Speculation:
    """What a Runner speculates with.

    acceptance: the rule. proposer: the drafter. policy: how much is drafted. num_scratch: rows
    reserved for it, without which nothing is. vocab_size: a token outside it ends the draft.
    max_batch_tokens: rows of a pass; what all requests draft in a step stays within it.
    """

    acceptance: Acceptance
    proposer: Proposer
    policy: WidthPolicy
    num_scratch: int
    vocab_size: int
    max_batch_tokens: int

    def accept(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        results: Sequence[StepResult],
        ends: Sequence[int],
    ) -> None:
        """Writes what follows requests that sample into their results.

        logits: [R, V] float32, of the whole pass. ends: after the last row of each request.
        """
        asked = list(map(Request.verify_request, requests))
        accepted = verify(self.acceptance, logits, asked, ends)
        for request, result, one in zip(requests, results, accepted, strict=True):
            result.take(request.draft, one)

    def release(self, request_id: str) -> None:
        """Drops what is kept for a request that gave up its state."""
        self.acceptance.release(request_id)
        self.proposer.release(request_id)

    def draft(
        self,
        requests: Sequence[Request],
        results: Sequence[StepResult],
        outputs: ModelOutputs,
        state: StateManager,
        start: float,
    ) -> None:
        """Gives each result that goes on its `draft`; the policy hears what the pass cost.

        outputs: of the pass. start: when it began, by `perf_counter`.
        """
        verified = perf_counter()
        num_sampling, num_drafted, is_decoding = 0, 0, True
        for request, result in zip(requests, results, strict=True):
            num_sampling += bool(result.tokens)
            num_drafted += len(result.drafted)
            is_decoding &= request.num_pending == 1 and request.num_output_tokens > 0
        width = self._width(num_sampling)
        asked, row_counts = [], []
        for request, result in zip(requests, results, strict=True):
            asked.append(self._request(request, result, width))
            row_counts.append(request.num_scheduled)
        proposals = propose(
            self.proposer,
            asked,
            row_counts=row_counts,
            hidden_states=outputs.hidden_states,
            kv_inputs=state.kv_inputs,
            vocab_size=outputs.logits.shape[1],
        )
        for result, proposal in zip(results, proposals, strict=True):
            if proposal is not None:
                result.draft = self._known(proposal)
            if result.drafted:
                self.policy.observe_acceptance(len(result.drafted), result.num_accepted)
        if is_decoding:
            self.policy.observe(len(requests), num_drafted / len(requests), verified - start)
            self.policy.observe_drafting(len(requests), width, perf_counter() - verified)

    def _width(self, num_drafting: int) -> int:
        """Tokens to draft for each; with one row more, which a block or the next pass has, all fit.

        Nothing is asked of the policy for a pass without a new token, as for a chunk of a prompt.
        """
        if not num_drafting:
            return 0
        room = self.max_batch_tokens // num_drafting - 1
        return max(0, min(self.policy.choose(num_drafting), room))

    def _known(self, proposal: Proposal) -> Proposal:
        """What comes before the first token that is no id of the target."""
        for place, token in enumerate(proposal.tokens):
            if not 0 <= token < self.vocab_size:
                return proposal.first(place)
        return proposal

    def _request(self, request: Request, result: StepResult, width: int) -> DraftRequest | None:
        if result.error is not None:
            return None
        new = list(result.tokens)
        tokens = request.tokens + new
        if not new or not request.rules.end_ids.isdisjoint(new):
            width = 0  # most likely the answer ends here; if not, it goes on without a draft
        room = request.rules.max_total_tokens - len(tokens) - 1
        return DraftRequest(
            request_id=request.request_id,
            tokens=tokens,
            num_before=request.num_computed,
            num_new=result.num_rows,
            num_draft_tokens=max(0, min(width, room))
            if request.num_scratch >= self.num_scratch
            else 0,
            sampling_row=lambda drafted: request.sampling_row([*new, *drafted]),
            num_started_tokens=request.num_started_tokens,
        )
