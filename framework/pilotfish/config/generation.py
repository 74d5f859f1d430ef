"""The sampling that a checkpoint asks for in its `generation_config.json`, as SamplingParams.

Knows: how that file spells sampling. Does not know: where it lies, or what a user asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pilotfish.config.checks import is_int, is_number
from pilotfish.config.sampling import SamplingParams
from pilotfish.errors import CheckpointError

_OFF = "or take generation_config 'none' to do without the file's defaults"


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: is_number(value) and holds(value)


_FIELDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("temperature", "a number >= 0", _number(lambda value: value >= 0)),
    ("top_k", "a whole number", is_int),
    ("top_p", "a number above 0", _number(lambda value: value > 0)),
    ("min_p", "a number from 0 to 1", _number(lambda value: 0 <= value <= 1)),
    ("repetition_penalty", "a number above 0", _number(lambda value: value > 0)),
    (
        "suppress_tokens",
        "a list of token ids",
        lambda value: isinstance(value, list) and all(map(is_int, value)),
    ),
)


def sampling_of(values: Mapping[str, Any], vocab_size: int) -> SamplingParams:
    """The SamplingParams that the values of a generation_config.json ask for.

    What the file does not say, or says null to, is as in `SamplingParams()`. `do_sample` false is
    greedy. vocab_size: ids from there on are none that could be suppressed.
    Raises CheckpointError naming a value that cannot be meant.
    """
    found: dict[str, Any] = {}
    for name, wanted, holds in _FIELDS:
        value = values.get(name)
        if value is None:
            continue
        if not holds(value):
            raise CheckpointError(
                f"generation_config.json has {name} {value!r:.60}; wanted {wanted}: correct the "
                f"file, {_OFF}"
            )
        found[name] = value
    if found.get("top_k", 1) <= 0:  # there 0 keeps all
        found["top_k"] = -1
    if "top_p" in found:
        found["top_p"] = min(found["top_p"], 1.0)
    if "suppress_tokens" in found:
        found["suppress_tokens"] = [i for i in found["suppress_tokens"] if 0 <= i < vocab_size]
    if values.get("do_sample") is False:
        found["temperature"] = 0.0
    return SamplingParams(**found)
