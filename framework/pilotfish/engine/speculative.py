"""SpeculativeRunner: passes that verify drafted tokens, and the drafting that follows them.

Knows: the order verify -> accept -> draft -> commit. Does not know: drafters, rules or widths.
Axis letters: B requests, T packed rows, R rows of logits, V vocabulary, F feature width.

Everything of a step is computed before any of it is committed: an exception anywhere leaves target
and draft at the length they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import attrs
import torch

from pilotfish.engine.proposals import check_proposals
from pilotfish.engine.request import Request
from pilotfish.engine.runner import Runner, StepResult
from pilotfish.errors import PilotfishError
from pilotfish.protocols import ModelOutputs, PipelineModel
from pilotfish.sampling import Sampler
from pilotfish.speculation import DraftBatch, DraftRequest, Proposal, Proposer, WidthPolicy
from pilotfish.speculation.acceptance import Acceptance, VerifyRequest
from pilotfish.state import StateManager


class SpeculativeRunner(Runner):
    """A Runner whose passes verify what the proposer drafted.

    proposer: the drafter. acceptance: the rule. policy: how much is drafted.
    vocab_size: a drafted token outside it ends the draft before it.
    num_scratch: reserved rows without which nothing is drafted. max_batch_tokens: rows of a pass;
    what all requests draft in a step stays within it.
    """

    def __init__(
        self,
        model: PipelineModel,
        state: StateManager,
        sampler: Sampler,
        *,
        proposer: Proposer,
        acceptance: Acceptance,
        policy: WidthPolicy,
        vocab_size: int,
        num_scratch: int,
        max_batch_tokens: int,
    ) -> None:
        super().__init__(model, state, sampler)
        self._proposer = proposer
        self._acceptance = acceptance
        self._policy = policy
        self._vocab_size = vocab_size
        self._num_scratch = num_scratch
        self._max_batch_tokens = max_batch_tokens
        self._draft_probs: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def compute(self, requests: Sequence[Request]) -> list[StepResult]:
        """As Runner.compute; the results carry the accepted tokens and the next proposals."""
        start = perf_counter()
        is_decoding = all(r.num_pending == 1 and r.num_output_tokens for r in requests)
        num_logit_rows = [request.num_logit_rows for request in requests]
        outputs = self._execute(requests, num_logit_rows)
        results = self._results(requests, num_logit_rows, outputs)
        verified = perf_counter()
        width, proposals = self._draft(requests, results, outputs)
        for result in results:
            if result.drafted:
                self._policy.observe_acceptance(len(result.drafted), result.num_accepted)
        if is_decoding:
            num_drafted = sum(len(result.drafted) for result in results)
            self._policy.observe(len(requests), num_drafted / len(requests), verified - start)
            self._policy.observe_drafting(len(requests), width, perf_counter() - verified)
        return [
            attrs.evolve(result, proposal=proposal)
            for result, proposal in zip(results, proposals, strict=True)
        ]

    def commit(self, request: Request, result: StepResult) -> None:
        """As Runner.commit; what was drafted waits for the next pass."""
        super().commit(request, result)
        proposal = result.proposal or Proposal()
        request.context.draft_tokens = self._known(proposal.tokens)
        self._draft_probs.pop(request.request_id, None)
        if proposal.probs is not None:
            self._draft_probs[request.request_id] = proposal.probs

    def release(self, request_id: str) -> None:
        """Drops what is kept for a request that gave up its state."""
        self._draft_probs.pop(request_id, None)
        self._acceptance.release(request_id)
        self._proposer.release(request_id)

    def _sample(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        samples: Sequence[int],
        logit_rows: Sequence[int],
    ) -> dict[int, StepResult]:
        """As Runner._sample, over all rows to be verified; `logit_rows` are their last ones."""
        if not samples:
            return {}
        chosen = [requests[b] for b in samples]
        verify = [self._verify_request(request) for request in chosen]
        rows = [
            row
            for last, one in zip(logit_rows, verify, strict=True)
            for row in range(last - len(one.drafts), last + 1)
        ]
        if len(rows) != logits.shape[0]:
            logits = logits[torch.tensor(rows, device=logits.device)]
        return dict(zip(samples, self._decide(logits, chosen, verify), strict=True))

    def _decide(
        self, logits: torch.Tensor, requests: Sequence[Request], verify: list[VerifyRequest]
    ) -> list[StepResult]:
        try:
            accepted = self._acceptance.decide(logits, verify)
        except PilotfishError as error:
            if len(requests) == 1:
                return [self._decide_less(logits, requests[0], verify[0], error)]
            # A request is decided by its own rows alone, so the bad one is found one by one.
            first, results = 0, []
            for request, one in zip(requests, verify, strict=True):
                rows = logits[first : first + len(one.rows)]
                results += self._decide(rows, [request], [one])
                first += len(one.rows)
            return results
        return [
            StepResult(
                num_rows=_num_certain(request) + found.num_accepted,
                tokens=found.tokens,
                logprobs=found.logprobs,
                drafted=request.context.draft_tokens,
                num_accepted=found.num_accepted,
            )
            for request, one, found in zip(requests, verify, accepted, strict=True)
        ]

    def _decide_less(
        self, logits: torch.Tensor, request: Request, one: VerifyRequest, error: PilotfishError
    ) -> StepResult:
        """Without the last drafts: a row that cannot be used may follow a token that is wrong."""
        count = len(one.drafts)
        if not count:
            return StepResult(num_rows=request.context.num_scheduled, error=error)
        probs = None if one.probs is None else one.probs[: count - 1]
        fewer = attrs.evolve(
            one, rows=one.rows[:count], drafts=one.drafts[: count - 1], probs=probs
        )
        return self._decide(logits[:count], [request], [fewer])[0]

    def _verify_request(self, request: Request) -> VerifyRequest:
        drafts = request.context.draft_tokens
        probs = self._draft_probs.get(request.request_id)
        return VerifyRequest(
            rows=[request.sampling_row(drafts[:place]) for place in range(len(drafts) + 1)],
            drafts=drafts,
            probs=None if probs is None else probs[: len(drafts)],
            context=request.context.tokens,
        )

    # Drafting

    def _draft(
        self, requests: Sequence[Request], results: Sequence[StepResult], outputs: ModelOutputs
    ) -> tuple[int, Sequence[Proposal | None]]:
        """Hands the rows that count to the proposer; the width, and None for a failed request."""
        places = [b for b, result in enumerate(results) if result.error is None]
        if not places:
            return 0, [None] * len(requests)
        width = self._width(sum(bool(results[b].tokens) for b in places))
        batch = DraftBatch(
            requests=[self._draft_request(requests[b], results[b], width) for b in places],
            features=_counted_rows(requests, results, outputs.hidden_states),
            kv_inputs=self.state.kv_inputs,
        )
        proposals = self._proposer.propose(batch)
        check_proposals(self._proposer, proposals, len(places), outputs.logits.shape[1])
        found: list[Proposal | None] = [None] * len(requests)
        for b, asked, proposal in zip(places, batch.requests, proposals, strict=True):
            found[b] = attrs.evolve(proposal, tokens=proposal.tokens[: asked.width])
        return width, found

    def _width(self, num_drafting: int) -> int:
        """Tokens to draft for each; with one row more, which a block or the next pass has, all fit.

        Nothing is asked of the policy for a pass without a new token, as for a chunk of a prompt.
        """
        if not num_drafting:
            return 0
        room = self._max_batch_tokens // num_drafting - 1
        return max(0, min(self._policy.choose(num_drafting), room))

    def _draft_request(self, request: Request, result: StepResult, width: int) -> DraftRequest:
        new = list(result.tokens)
        tokens = request.context.tokens + new
        if not new or not request.rules.end_ids.isdisjoint(new):
            width = 0  # most likely the answer ends here; if not, it goes on without a draft
        room = request.rules.max_total_tokens - len(tokens) - 1
        return DraftRequest(
            request_id=request.request_id,
            tokens=tokens,
            num_before=request.context.num_computed,
            num_new=result.num_rows,
            width=max(0, min(width, room)) if request.num_scratch >= self._num_scratch else 0,
            sampling_row=lambda drafted: request.sampling_row([*new, *drafted]),
            num_started_tokens=request.num_started_tokens,
        )

    def _known(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The drafted tokens up to the first that is no id of the target."""
        for place, token in enumerate(tokens):
            if not 0 <= token < self._vocab_size:
                return tuple(tokens[:place])
        return tuple(tokens)


def _num_certain(request: Request) -> int:
    """Rows of the pass that count whatever is accepted."""
    return request.context.num_scheduled - len(request.context.draft_tokens)


def _counted_rows(
    requests: Sequence[Request], results: Sequence[StepResult], hidden: torch.Tensor | None
) -> torch.Tensor | None:
    """[T', F]: the rows that count of the requests that did not fail, of the pass's [T, F]."""
    if hidden is None:
        return None
    rows: list[int] = []
    first = 0
    for request, result in zip(requests, results, strict=True):
        if result.error is None:
            rows.extend(range(first, first + result.num_rows))
        first += request.context.num_scheduled
    if len(rows) == hidden.shape[0]:
        return hidden
    return hidden[torch.tensor(rows, device=hidden.device)]
