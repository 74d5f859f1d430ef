"""Runner: one pass of the model for requests that were scheduled, and what follows from it.

Knows: inputs, logits, sampling and commit. Does not know: which requests run, or why.
Axis letters: B requests, R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from pilotfish.engine.request import Request
from pilotfish.errors import PilotfishError
from pilotfish.protocols import ModelOutputs, PipelineModel
from pilotfish.sampling import Sampler, TokenLogprobs, prompt_logprobs
from pilotfish.state import PagedStateSpec, StateManager


@attrs.frozen(kw_only=True)
class StepResult:
    """What one pass gave one request; nothing is changed before it is committed.

    num_rows: rows to keep. tokens: sampled ones, in order; none for a chunk that is not the last.
    logprobs: one record (or None) a token. prompt_records: of the chunk's prompt tokens.
    kept_logits: [n, V] float32, rows for a request that keeps them.
    error: why this request cannot go on; the others can.
    """

    num_rows: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    prompt_records: Sequence[TokenLogprobs] = ()
    kept_logits: torch.Tensor | None = None
    error: PilotfishError | None = None


class Runner:
    """Runs passes of one model over one state.

    The model returns VARIABLE logits. Its paged leaf is the first that it declares; a model
    without pages gets no page tables.
    """

    def __init__(self, model: PipelineModel, state: StateManager, sampler: Sampler) -> None:
        self._model = model
        self._state = state
        self._sampler = sampler
        leaves = [spec.name for spec in model.state if isinstance(spec, PagedStateSpec)]
        self._leaf = leaves[0] if leaves else None

    @torch.inference_mode()
    def compute(self, requests: Sequence[Request]) -> list[StepResult]:
        """Runs the scheduled rows, all reserved, and samples; commits nothing.

        A request whose own logits cannot be used gets a result with an error. An exception of the
        model itself concerns all requests and is raised; every request can then be run again.
        """
        num_logit_rows = [request.num_logit_rows for request in requests]
        outputs = self._execute(requests, num_logit_rows)
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

    def commit(self, request: Request, result: StepResult) -> None:
        """Makes the rows of a pass count."""
        context = request.context
        self._state.commit(context.request_id, result.num_rows)
        context.num_computed += result.num_rows
        context.num_scheduled = 0
        request.prompt_logprobs.extend(result.prompt_records)
        if result.kept_logits is not None:
            request.kept_logits.append(result.kept_logits)
            request.num_kept_rows += result.kept_logits.shape[0]

    def _execute(self, requests: Sequence[Request], num_logit_rows: list[int]) -> ModelOutputs:
        contexts = [request.context for request in requests]
        kv_inputs = None
        if self._leaf is not None:
            kv_inputs = self._state.kv_inputs(
                [context.request_id for context in contexts],
                [context.num_scheduled for context in contexts],
                self._leaf,
            )
        inputs = self._model.prepare_initial_token_inputs([contexts], kv_inputs, num_logit_rows)
        return self._model.execute(inputs)

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


def _with_prompt_rows(request: Request, result: StepResult, logits: torch.Tensor) -> StepResult:
    """Adds what the request wants of its prompt's rows; logits: the last rows of its chunk."""
    context = request.context
    first = context.num_computed + context.num_scheduled - logits.shape[0]
    if request.keeps_logits:
        return attrs.evolve(result, kept_logits=logits.clone())
    num_top = request.params.prompt_logprobs
    assert num_top is not None
    prompt_ids = context.tokens[: request.num_prompt_tokens]
    try:
        records = prompt_logprobs(logits, prompt_ids, first, num_top)
    except PilotfishError as error:
        return attrs.evolve(result, error=error)
    return attrs.evolve(result, prompt_records=records)
