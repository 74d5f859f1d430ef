"""Bugs of limits, requests and sampling."""

from __future__ import annotations

from typing import Any

import attrs

from support.planted_bugs import (
    NAIVE,
    bug,
)

# Positions, limits, requests


@bug(
    17,
    "an answer overshoots its limit by one",
    "limits cut the same text",
    "pilotfish.engine.stopping:StopRules.of",
)
def _(real: Any) -> Any:
    def of(params: Any, **given: Any) -> Any:
        made = real(params, **given)
        return attrs.evolve(made, max_total_tokens=made.max_total_tokens + 1)

    return staticmethod(of)


@bug(
    17,
    "end tokens are sampled before min_tokens",
    "limits cut the same text",
    "pilotfish.engine.stopping:StopRules.banned_ids",
)
def _(real: Any) -> Any:
    return property(lambda self: ())


@bug(
    44,
    "a prompt that is too long gets no reply",
    "every request ends once",
    "pilotfish.engine.llm:LLM.generate",
)
def _(real: Any) -> Any:
    def generate(self: Any, *args: Any, **options: Any) -> Any:
        return [o for o in real(self, *args, **options) if o.finish_reason != "error"]

    return generate


@bug(
    0,
    "a context beyond the model's reach is accepted",
    "limits are refused",
    "pilotfish.config.rope:RopeParameters.context_length",
)
def _(real: Any) -> Any:
    return lambda rope, max_length: max_length or real(rope, max_length)


# Sampling


@bug(
    22,
    "a request's noise moves on with its neighbours",
    "same seed, same text",
    "pilotfish.sampling.sampler:_draw",
)
def _(real: Any) -> Any:
    return lambda logits, rows: real(
        logits, [attrs.evolve(row, position=row.position + len(rows)) for row in rows]
    )


@bug(22, "the seed is ignored", "seeds matter", "pilotfish.sampling.sampler:_draw")
def _(real: Any) -> Any:
    return lambda logits, rows: real(logits, [attrs.evolve(row, seed=0) for row in rows])


@bug(22, "requests of one batch share one seed", "seeds matter", "pilotfish.sampling.sampler:_draw")
def _(real: Any) -> Any:
    return lambda logits, rows: real(logits, [attrs.evolve(row, seed=rows[0].seed) for row in rows])


@bug(23, "the temperature is ignored", NAIVE, "pilotfish.sampling.sampler:_temper_")
def _(real: Any) -> Any:
    return lambda logits, rows: None


@bug(
    24,
    "penalties do not count the newest token",
    NAIVE,
    "pilotfish.sampling.penalties:TokenHistory.append",
)
def _(real: Any) -> Any:
    def append(self: Any, token: int) -> None:
        late, self._late = getattr(self, "_late", None), token
        self.num_output_tokens += 1
        if late is not None:
            real(self, late)
            self.num_output_tokens -= 1

    return append


@bug(
    24,
    "logit_bias is left out",
    NAIVE,
    "pilotfish.sampling.edits:add_bias_",
)
def _(real: Any) -> Any:
    return lambda logits, params: None


@bug(
    25,
    "log probabilities of a neighbour's row",
    NAIVE,
    "pilotfish.sampling.sampler:token_logprobs",
)
def _(real: Any) -> Any:
    return lambda logits, *args: real(logits.roll(1, 0), *args)


@bug(
    25,
    "log probabilities of a prompt are shifted by one",
    "prompt log probabilities are the model's",
    "pilotfish.engine.runner:prompt_logprobs",
)
def _(real: Any) -> Any:
    def shifted(logits: Any, prompt: Any, first: int, num_top: int) -> Any:
        return real(logits, [*prompt[-1:], *prompt[:-1]], first, num_top)

    return shifted


@bug(
    26,
    "the last of equal tokens wins",
    "ties go to the lowest id",
    "pilotfish.sampling.sampler:lowest_argmax",
)
def _(real: Any) -> Any:
    def highest(scores: Any) -> Any:
        ids, values = real(scores.flip(-1))
        return scores.shape[1] - 1 - ids, values

    return highest
