"""SamplingParams: what one request asks of the sampler and of the stop rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import attrs

from pilotfish.config.checks import boolean, int_at_least, is_int, is_number, number, plain
from pilotfish.config.peers import SAMPLING, Elsewhere, answering_peers
from pilotfish.errors import RequestError

MAX_LOGPROBS = 100
MOST_SAMPLES = 1024
MOST_BIAS = 1e30
"""Of `logit_bias`: with the least temperature there is, a logit stays within float32."""
NO_LIMIT = 2**31 - 1
"""Of `max_tokens`: more than any context holds."""
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""


def _as_limit(value: Any) -> Any:
    """None is no limit but the context."""
    return NO_LIMIT if value is None else plain(value)


def _as_top_k(value: Any) -> Any:
    """0 keeps all tokens too, as elsewhere."""
    value = plain(value)
    return -1 if is_int(value) and value == 0 else value


_check_temperature = number("a number >= 0", lambda v: v >= 0, error=RequestError)
_check_top_p = number("a number in (0, 1]", lambda v: 0 < v <= 1, error=RequestError)
_check_min_p = number("a number in [0, 1]", lambda v: 0 <= v <= 1, error=RequestError)
_check_penalty = number("a number in [-2, 2]", lambda v: -2 <= v <= 2, error=RequestError)
_check_repetition = number("a number > 0", lambda v: v > 0, error=RequestError)


def _check_top_k(instance: Any, attribute: Any, value: Any) -> None:
    if not is_int(value) or value < -1:
        raise RequestError(f"top_k is {value!r}; wanted -1 (all tokens) or a whole number >= 1")


def _check_seed(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not (is_int(value) and 0 <= value < 2**63):
        raise RequestError(f"seed is {value!r}; wanted None or a whole number in [0, 2**63)")


def _check_n(instance: Any, attribute: Any, value: Any) -> None:
    if not (is_int(value) and 1 <= value <= MOST_SAMPLES):
        raise RequestError(f"n is {value!r}; wanted a whole number from 1 to {MOST_SAMPLES}")


def _check_logit_bias(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias is {value!r}; wanted a mapping of token ids to numbers")
    for token, bias in value.items():
        is_bias = is_number(bias) and abs(bias) <= MOST_BIAS
        if not is_int(token) or token < 0 or not is_bias:
            raise RequestError(
                f"logit_bias has {token!r}: {bias!r}; wanted token ids >= 0 with numbers from "
                f"-{MOST_BIAS:g} to {MOST_BIAS:g}"
            )


def _check_stop(instance: Any, attribute: Any, value: Any) -> None:
    for text in value:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop has {text!r}; wanted strings that are not empty")


def _check_token_ids(instance: Any, attribute: Any, value: Any) -> None:
    for token in value:
        if not is_int(token) or token < 0:
            raise RequestError(f"{attribute.name} has {token!r}; wanted token ids >= 0")


def _check_logprobs(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not (is_int(value) and 0 <= value <= MAX_LOGPROBS):
        raise RequestError(
            f"{attribute.name} is {value!r}; wanted None or a whole number from 0 to {MAX_LOGPROBS}"
        )


def _as_texts(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else _listed("stop", value)


def _as_ids(value: Sequence[int] | None) -> tuple[int, ...]:
    return _listed("stop_token_ids", value)


def _as_suppressed(value: Sequence[int] | None) -> tuple[int, ...]:
    return _listed("suppress_tokens", value)


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    """A tuple; None is an empty one. Numbers of NumPy and torch become Python's own."""
    if getattr(value, "ndim", None) == 1:
        value = value.tolist()
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise RequestError(f"{name} is {value!r}; wanted a list")
    return tuple(map(plain, value))


def _as_bias(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {plain(token): plain(bias) for token, bias in value.items()}


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed of answer `sample`, of those that a request of several has: 63 bits of BLAKE2b."""
    if sample == 0:
        return seed
    digest = blake2b(f"{seed},{sample}".encode(), digest_size=8, person=b"sample").digest()
    return int.from_bytes(digest, "little") >> 1


@answering_peers(SAMPLING, RequestError)
@attrs.frozen(kw_only=True)
class SamplingParams:
    """How one request is sampled and when it stops. Raises RequestError naming the field.

    Other engines' names of a field are taken where they mean the same: see `config.peers`.

    max_tokens, min_tokens: of the answer; before min_tokens nothing but max_tokens ends it. None
        for max_tokens is no limit but the context's end.
    temperature: 0 is greedy. top_k: -1, or 0, keeps all. top_p, min_p: see `sampling.truncation`.
    seed: of the request's noise; None draws one, which the output reports.
    n: answers to one prompt, which is computed once: see `RequestOutput.outputs`. The first has the
        seed, the others `seed_of_sample`, so that each can be asked for alone.
    presence_penalty, frequency_penalty, repetition_penalty: see `sampling.penalties`.
    logit_bias: token id -> number added to its logit. suppress_tokens: ids that never come.
    stop: strings that end the answer and are cut from it; special tokens by their text.
    stop_token_ids: ids that end it.
    ignore_eos: go on past the model's own end tokens.
    logprobs, prompt_logprobs: how many of the likeliest tokens to report beside the token itself.
    """

    max_tokens: int = attrs.field(
        converter=_as_limit,
        default=128,
        validator=int_at_least(1, error=RequestError),
    )
    min_tokens: int = attrs.field(
        converter=plain, default=0, validator=int_at_least(0, error=RequestError)
    )
    temperature: float = attrs.field(converter=plain, default=1.0, validator=_check_temperature)
    top_k: int = attrs.field(converter=_as_top_k, default=-1, validator=_check_top_k)
    top_p: float = attrs.field(converter=plain, default=1.0, validator=_check_top_p)
    min_p: float = attrs.field(converter=plain, default=0.0, validator=_check_min_p)
    seed: int | None = attrs.field(converter=plain, default=None, validator=_check_seed)
    n: int = attrs.field(converter=plain, default=1, validator=_check_n)
    presence_penalty: float = attrs.field(converter=plain, default=0.0, validator=_check_penalty)
    frequency_penalty: float = attrs.field(converter=plain, default=0.0, validator=_check_penalty)
    repetition_penalty: float = attrs.field(
        converter=plain, default=1.0, validator=_check_repetition
    )
    logit_bias: Mapping[int, float] = attrs.field(
        default=None, converter=_as_bias, validator=_check_logit_bias, hash=False
    )
    suppress_tokens: Sequence[int] = attrs.field(
        default=(), converter=_as_suppressed, validator=_check_token_ids
    )
    stop: Sequence[str] = attrs.field(default=(), converter=_as_texts, validator=_check_stop)
    stop_token_ids: Sequence[int] = attrs.field(
        default=(), converter=_as_ids, validator=_check_token_ids
    )
    ignore_eos: bool = attrs.field(default=False, validator=boolean(error=RequestError))
    logprobs: int | None = attrs.field(converter=plain, default=None, validator=_check_logprobs)
    prompt_logprobs: int | None = attrs.field(
        converter=plain, default=None, validator=_check_logprobs
    )

    def __attrs_post_init__(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}; "
                "lower min_tokens or raise max_tokens"
            )

    def replace(self, **changes: Any) -> SamplingParams:
        """The same with other values of some fields."""
        return attrs.evolve(self, **changes)

    @cached_property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, without noise."""
        return self.temperature < GREEDY_BELOW

    @cached_property
    def has_penalties(self) -> bool:
        """Whether tokens of prompt and answer change the logits."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0, 0, 1)


def _takes(name: str) -> bool:
    ours = SAMPLING[name].ours if name in SAMPLING else name
    return ours in attrs.fields_dict(SamplingParams)


def _says(name: str, value: Any) -> str:
    if name not in SAMPLING and not _takes(name):
        return ""
    try:
        options = SAMPLING[name].options(value) if name in SAMPLING else {name: value}
    except ValueError as refusal:
        return f"of SamplingParams, and {name}={value!r} is not served there: {refusal}"
    if not options:
        return f"of SamplingParams, where {name}={value!r} changes nothing"
    given = ", ".join(f"{ours}={it!r}" for ours, it in options.items())
    return f"wanted it in the params of generate: SamplingParams({given})"


OF_SAMPLING = Elsewhere(_takes, _says)
"""Options of SamplingParams in another place."""
