"""Values of a config.json that cannot be right, refused before anything is built of them.

Knows: which names count what is built one by one, and kinds of values. Does not know: model types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pilotfish.config.checks import is_number
from pilotfish.errors import CheckpointError

MOST = 10_000
"""Most layers, experts and the like: config classes and networks make one thing for each."""
DEEPEST = 64
"""Most sections within sections; what walks a config walks it by recursion."""

_COUNTS = re.compile(
    r"(num|n|vt_num|mm_num)_(\w+_)?(layers?|experts?|blocks?|labels|stages)|\w*depth|\w+_layers"
)
ROPE_OPTIONS = ("rope_scaling", "rope_parameters")


def check_values(values: Mapping[str, Any], whose: str) -> None:
    """Raises CheckpointError naming a value of a config, or of a section in it, and what is wanted.

    whose: config, for errors.
    """
    kind = values.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{whose}: model_type is {kind!r}; wanted a name, in quotes")
    _walk(values, whose, "", 0)


def _walk(value: Any, whose: str, section: str, depth: int) -> None:
    if depth > DEEPEST:
        raise CheckpointError(
            f"{whose}: nests more than {DEEPEST} objects or lists; wanted a model's config: get "
            "the file again"
        )
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check(name, item, f"{whose}: {section}{name}")
            _walk(item, whose, f"{section}{name}.", depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                _walk(item, whose, section, depth + 1)


def _check(name: str, value: Any, named: str) -> None:
    if _COUNTS.fullmatch(name) and _is_above(value, MOST):
        raise CheckpointError(
            f"{named} is {_shown(value)}; wanted at most {MOST}: check the published file"
        )
    if name in ROPE_OPTIONS and value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"{named} is {_shown(value)}; wanted an object of options, or null")


def _is_above(value: Any, most: int) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value > most  # of any size, which no float need hold
    return is_number(value) and value > most


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}..."
