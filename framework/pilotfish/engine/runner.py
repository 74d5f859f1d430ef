"""Runner: one pass of the model for requests that were scheduled, and what follows from it.

Knows: inputs, logits, sampling and commit. Does not know: which requests run, or why.
Axis letters: B requests, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

import torch

from pilotfish.batch import RequestContext
from pilotfish.engine.request import Request
from pilotfish.engine.speculative import Speculation
from pilotfish.engine.step_result import StepResult
from pilotfish.errors import PilotfishError
from pilotfish.kernels.device import current_device
from pilotfish.protocols import ModelInputs, ModelOutputs, PipelineModel
from pilotfish.sampling import Sampler, prompt_logprobs
from pilotfish.state import PagedStateSpec, StateManager


class Runner:
    """Runs passes of one model over one state.

    model: returns VARIABLE logits. Its paged cache is the first that it declares; a model without
    pages gets no page tables. speculation: what verifies drafted tokens and drafts; None: nothing.
    """

    def __init__(
        self,
        model: PipelineModel,
        state: StateManager,
        sampler: Sampler,
        speculation: Speculation | None = None,
    ) -> None:
        self.model = model
        self.state = state
        self.speculation = speculation
        self._sampler = sampler
        self._cache_name = paged_cache_name(model)
        self._on_device = current_device(model.device)

    @torch.inference_mode()
    def compute(self, requests: Sequence[Request]) -> list[StepResult]:
        """Runs the scheduled rows, all reserved, samples, and drafts; commits nothing.

        A request whose own logits cannot be used gets a result with an error. An exception of the
        model or the drafter concerns all requests and is raised; every one can then be run again.
        """
        start = perf_counter()
        num_logit_rows = []
        for request in requests:
            num_logit_rows.append(request.num_logit_rows)
        with self._on_device:
            inputs = pass_inputs(self.model, self.state, requests, num_logit_rows, self._cache_name)
            outputs = self.model.execute(inputs)
            results = self._results(requests, num_logit_rows, outputs)
            if self.speculation is not None:
                self.speculation.draft(requests, results, outputs, self.state, start)
        return results

    def release(self, request_id: str) -> None:
        """Drops what is kept for a request that gave up its state."""
        if self.speculation is not None:
            self.speculation.release(request_id)

    def commit(self, request: Request, result: StepResult) -> None:
        """Makes the rows of a pass count; what was drafted waits for the next one."""
        self.state.commit(request.request_id, result.num_rows)
        request.num_computed += result.num_rows
        request.num_scheduled = 0
        request.draft = result.draft
        if request.wants_prompt_rows:
            request.prompt_logprobs.extend(result.prompt_records)
            if result.kept_logits is not None:
                request.keep_logits(result.kept_logits)

    def _results(
        self, requests: Sequence[Request], num_logit_rows: list[int], outputs: ModelOutputs
    ) -> list[StepResult]:
        results, sampling, sampled, ends = [], [], [], []
        offsets = outputs.logit_offsets.tolist()
        for request, count, end in zip(requests, num_logit_rows, offsets[1:], strict=True):
            result = StepResult(num_rows=request.num_scheduled)
            results.append(result)
            if request.wants_prompt_rows and request.num_wanted_rows and count:
                _add_prompt_rows(request, result, outputs.logits[end - count : end])
            if request.samples_next:
                sampling.append(request)
                sampled.append(result)
                ends.append(end)
        if sampling and self.speculation is not None:
            self.speculation.accept(outputs.logits, sampling, sampled, ends)
        elif sampling:
            self._sample(outputs.logits, sampling, sampled, ends)
        return results

    def _sample(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        results: Sequence[StepResult],
        ends: Sequence[int],
    ) -> None:
        """One token for each request, whose last rows of the logits end at `ends`."""
        if len(ends) != logits.shape[0]:
            logits = logits[torch.tensor(ends, device=logits.device) - 1]
        rows = []
        for request in requests:
            rows.append(request.sampling_row())
        try:
            sampled = self._sampler.sample(logits, rows)
        except PilotfishError as error:
            if len(requests) == 1:
                results[0].error = error
                return
            # A row's token depends on that row alone, so the bad one is found one by one.
            for i, (request, result) in enumerate(zip(requests, results, strict=True)):
                self._sample(logits[i : i + 1], [request], [result], [1])
            return
        tokens = sampled.token_ids.tolist()
        for result, token, record in zip(results, tokens, sampled.logprobs, strict=True):
            result.tokens, result.logprobs = (token,), (record,)


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
        request_ids, row_counts = [], []
        for context in contexts:
            request_ids.append(context.request_id)
            row_counts.append(context.num_scheduled)
        kv_inputs = state.kv_inputs(request_ids, row_counts, cache_name)
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


def _add_prompt_rows(request: Request, result: StepResult, logits: torch.Tensor) -> None:
    """Adds what the request wants of its prompt's rows; logits: the last rows of its chunk."""
    first = request.num_computed + request.num_scheduled - logits.shape[0]
    if request.keeps_logits:
        result.kept_logits, result.error = logits, _unusable(logits, first)
        return
    num_top = request.params.prompt_logprobs
    assert num_top is not None
    prompt_ids = request.tokens[: request.num_prompt_tokens]
    try:
        result.prompt_records = prompt_logprobs(logits, prompt_ids, first, num_top)
    except PilotfishError as error:
        result.error = error
