"""Runner: one pass of the model for requests that were scheduled, and what follows from it.

Knows: inputs, logits, sampling and commit. Does not know: which requests run, or why.
Axis letters: B requests, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch

from pilotfish.batch import RequestContext
from pilotfish.engine.request import Request
from pilotfish.errors import PilotfishError
from pilotfish.protocols import ModelInputs, ModelOutputs, PipelineModel
from pilotfish.sampling import Sampler, TokenLogprobs, prompt_logprobs
from pilotfish.speculation import Proposal
from pilotfish.state import PagedStateSpec, StateManager


@attrs.frozen(kw_only=True)
class StepResult:
    """What one pass gave one request; nothing is changed before it is committed.

    num_rows: rows to keep. tokens: sampled ones, in order; none for a chunk that is not the last.
    logprobs: one record (or None) a token. prompt_records: of the chunk's prompt tokens.
    kept_logits: [n, V] float32, rows for a request that keeps them; valid until the next pass.
    drafted: tokens that were verified; num_accepted: how many of them begin `tokens`.
    proposal: drafted to follow `tokens`.
    error: why this request cannot go on; the others can.
    """

    num_rows: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    prompt_records: Sequence[TokenLogprobs] = ()
    kept_logits: torch.Tensor | None = None
    drafted: tuple[int, ...] = ()
    num_accepted: int = 0
    proposal: Proposal | None = None
    error: PilotfishError | None = None


class Runner:
    """Runs passes of one model over one state.

    The model returns VARIABLE logits. Its paged cache is the first that it declares; a model
    without pages gets no page tables.
    """

    def __init__(self, model: PipelineModel, state: StateManager, sampler: Sampler) -> None:
        self.model = model
        self.state = state
        self._sampler = sampler
        self._cache_name = paged_cache_name(model)

    @torch.inference_mode()
    def compute(self, requests: Sequence[Request]) -> list[StepResult]:
        """Runs the scheduled rows, all reserved, and samples; commits nothing.

        A request whose own logits cannot be used gets a result with an error. An exception of the
        model itself concerns all requests and is raised; every request can then be run again.
        """
        num_logit_rows = [request.num_logit_rows for request in requests]
        return self._results(requests, num_logit_rows, self._execute(requests, num_logit_rows))

    def _results(
        self, requests: Sequence[Request], num_logit_rows: list[int], outputs: ModelOutputs
    ) -> list[StepResult]:
        ends = outputs.logit_offsets.tolist()[1:]
        samples = [b for b, request in enumerate(requests) if request.samples_next]
        sampled = self._sample(outputs.logits, requests, samples, [ends[b] - 1 for b in samples])
        results = []
        for b, (request, count) in enumerate(zip(requests, num_logit_rows, strict=True)):
            result = sampled.get(b) or StepResult(num_rows=request.context.num_scheduled)
            if request.num_wanted_rows and count:
                result = _with_prompt_rows(
                    request, result, outputs.logits[ends[b] - count : ends[b]]
                )
            results.append(result)
        return results

    def release(self, request_id: str) -> None:
        """A request gave up its state; nothing is kept here."""

    def commit(self, request: Request, result: StepResult) -> None:
        """Makes the rows of a pass count."""
        context = request.context
        self.state.commit(context.request_id, result.num_rows)
        context.num_computed += result.num_rows
        context.num_scheduled = 0
        request.prompt_logprobs.extend(result.prompt_records)
        if result.kept_logits is not None:
            request.keep_logits(result.kept_logits)

    def _execute(self, requests: Sequence[Request], num_logit_rows: list[int]) -> ModelOutputs:
        contexts = [request.context for request in requests]
        return self.model.execute(
            pass_inputs(self.model, self.state, contexts, num_logit_rows, self._cache_name)
        )

    def _sample(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        samples: Sequence[int],
        logit_rows: Sequence[int],
    ) -> dict[int, StepResult]:
        """Results of the requests at the places `samples`, whose last logits are `logit_rows`."""
        if not samples:
            return {}
        if len(samples) != logits.shape[0]:
            logits = logits[torch.tensor(logit_rows, device=logits.device)]
        chosen = [requests[b] for b in samples]
        try:
            results = self._sample_rows(logits, chosen)
        except PilotfishError:
            # A row's token depends on that row alone, so the bad one is found one by one.
            results = [self._sample_alone(logits[i : i + 1], r) for i, r in enumerate(chosen)]
        return dict(zip(samples, results, strict=True))

    def _sample_rows(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[StepResult]:
        sampled = self._sampler.sample(logits, [request.sampling_row() for request in requests])
        tokens = sampled.token_ids.tolist()
        return [
            StepResult(num_rows=r.context.num_scheduled, tokens=(token,), logprobs=(record,))
            for r, token, record in zip(requests, tokens, sampled.logprobs, strict=True)
        ]

    def _sample_alone(self, logits: torch.Tensor, request: Request) -> StepResult:
        try:
            return self._sample_rows(logits, [request])[0]
        except PilotfishError as error:
            return StepResult(num_rows=request.context.num_scheduled, error=error)


def paged_cache_name(model: PipelineModel) -> str | None:
    """The paged cache of a model's inputs, the first that it declares; None without pages."""
    return next((spec.name for spec in model.state if isinstance(spec, PagedStateSpec)), None)


def pass_inputs(
    model: PipelineModel,
    state: StateManager,
    contexts: Sequence[RequestContext],
    num_logit_rows: Sequence[int],
    cache_name: str | None,
) -> ModelInputs:
    """Inputs of one pass over the scheduled rows of some requests, all of them reserved.

    num_logit_rows: [B], rows of logits wanted of each. cache_name: see `paged_cache_name`.
    """
    kv_inputs = None
    if cache_name is not None:
        kv_inputs = state.kv_inputs(
            [context.request_id for context in contexts],
            [context.num_scheduled for context in contexts],
            cache_name,
        )
    return model.prepare_initial_token_inputs([contexts], kv_inputs, num_logit_rows)


def _unusable(logits: torch.Tensor, first: int) -> PilotfishError | None:
    """What is wrong with rows of logits, from position `first` on; None where nothing is."""
    for place, value in enumerate(logits.amax(-1).tolist()):
        if math.isnan(value) or value == math.inf:
            what = "NaN" if math.isnan(value) else "+inf"
            return PilotfishError(
                f"position {first + place}: the logits hold {what}; wanted finite numbers or -inf: "
                "check the weights, or run in float32"
            )
    return None


def _with_prompt_rows(request: Request, result: StepResult, logits: torch.Tensor) -> StepResult:
    """Adds what the request wants of its prompt's rows; logits: the last rows of its chunk."""
    context = request.context
    first = context.num_computed + context.num_scheduled - logits.shape[0]
    if request.keeps_logits:
        return attrs.evolve(result, kept_logits=logits, error=_unusable(logits, first))
    num_top = request.params.prompt_logprobs
    assert num_top is not None
    prompt_ids = context.tokens[: request.num_prompt_tokens]
    try:
        records = prompt_logprobs(logits, prompt_ids, first, num_top)
    except PilotfishError as error:
        return attrs.evolve(result, error=error)
    return attrs.evolve(result, prompt_records=records)
