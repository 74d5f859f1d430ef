"""Asking: what one call asks of a model, as requests; what is refused, as outputs.

Knows: prompts and params, one or many. Does not know: how requests run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import attrs
import torch

from pilotfish.config import SamplingParams
from pilotfish.engine.admission import Admission
from pilotfish.engine.outputs import RequestOutput
from pilotfish.engine.prompt import Prompt, given_ids, listed_prompts
from pilotfish.engine.request import Request
from pilotfish.engine.turns import Turns
from pilotfish.errors import PilotfishError, RequestError, UserError

Params: TypeAlias = SamplingParams | Sequence[SamplingParams] | None


@attrs.frozen
class Asked:
    """What one call asked. refused: of each prompt, the output of one that was, or None."""

    requests: list[Request]
    refused: list[RequestOutput | None]

    def outputs(self) -> list[RequestOutput]:
        """Of each prompt, once all requests have ended."""
        found = list(self.refused)
        for index, samples in groupby(self.requests, key=lambda request: request.index):
            first, *others = map(_terminal, samples)
            found[index] = attrs.evolve(first, others=tuple(others)) if others else first
        return [output for output in found if output is not None]


@attrs.frozen
class Asking:
    """Makes requests, one in a turn, so that a long list holds nobody up.

    defaults: the params of a call that gives none.
    """

    admission: Admission
    turns: Turns
    defaults: Callable[[], SamplingParams]

    def answers(self, prompts: Prompt | Sequence[Prompt], params: Params) -> Asked:
        """Requests for all prompts that can be answered.

        Raises what refuses a single prompt; RequestError for a list of params of another length.
        """
        listed = listed_prompts(prompts)
        each = _params_for(listed, self.defaults() if params is None else params)
        self.turns.check_open()
        refused: list[RequestOutput | None] = [None] * len(listed)
        requests: list[Request] = []
        for index, (prompt, options) in enumerate(zip(listed, each, strict=True)):
            try:
                admit = partial(self.admission.admit_samples, prompt, options, index)
                requests += self.turns.take(admit)
            except UserError as error:
                if len(listed) == 1:
                    raise
                refused[index] = RequestOutput.refused(
                    index, given_ids(prompt), options.seed, error
                )
        return Asked(requests, refused)

    def stream(self, prompt: Prompt, params: SamplingParams | None) -> Request:
        """A request whose pieces are read. Raises as `answers` for a single prompt."""
        self.turns.check_open()
        several: Any = prompt if isinstance(prompt, list | tuple) else ()
        if several and isinstance(several[0], str | list | tuple | Mapping):
            raise RequestError(
                f"stream takes one prompt and got a list of {len(several)} texts; wanted a "
                "stream for each, read in turns, or generate"
            )
        options = self.defaults() if params is None else params
        if isinstance(options, SamplingParams) and options.n > 1:
            raise RequestError(
                f"n is {options.n}, and a stream has one answer; wanted n=1 and a stream for each, "
                "or generate"
            )
        return self.turns.take(partial(self.admission.admit, prompt, options, streams=True))

    def scores(self, texts: Sequence[Prompt], available: int) -> list[Request]:
        """Requests for the logits of every row. Raises CapacityError where these do not fit."""
        self.turns.check_open()
        requests = [self.turns.take(partial(self.admission.admit_scoring, text)) for text in texts]
        num_rows = sum(request.num_prompt_tokens for request in requests)
        self.admission.check_scores(num_rows, available)
        return requests


def scores_of(request: Request) -> torch.Tensor:
    """[T, V] float32, of a request that has ended. Raises PilotfishError saying why not."""
    output = _terminal(request)
    if output.finish_reason == "abort":
        raise PilotfishError("this LLM was closed before the text was scored")
    if output.finish_reason == "error":
        raise PilotfishError(str(output.error))
    assert request.kept_logits is not None
    return request.kept_logits


def _terminal(request: Request) -> RequestOutput:
    output = request.outbox[-1].output
    assert output is not None, "a request that ended has an output"
    return output


def _params_for(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * len(prompts)
    wrong = [params] if isinstance(params, Mapping) else params
    for item in wrong:
        if not isinstance(item, SamplingParams):
            raise RequestError(
                f"params has {type(item).__name__}; wanted SamplingParams, or a list of them"
            )
    if len(params) != len(prompts):
        raise RequestError(
            f"got {len(params)} params for {len(prompts)} prompts; wanted one each, or one for all"
        )
    return list(params)
