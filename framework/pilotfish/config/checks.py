"""Validators for attrs fields: the message says field, value and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeGuard

from pilotfish.errors import ConfigError, RequestError

Validator = Callable[[Any, Any, Any], None]
Refusal = type[ConfigError] | type[RequestError]
"""Which error says that a value is not served."""


def _validator(holds: Callable[[Any], bool], wanted: str, error: Refusal) -> Validator:
    def check(instance: Any, attribute: Any, value: Any) -> None:
        del instance
        if not holds(value):
            raise error(f"{attribute.name} is {value!r}; wanted {wanted}")

    return check


def plain(value: Any) -> Any:
    """A single number of NumPy or torch as Python's own; anything else as it is."""
    if type(value) in (int, float, bool) or getattr(value, "ndim", None) != 0:
        return value
    return value.item()


def is_int(value: object) -> TypeGuard[int]:
    """A whole number that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite int or float that is no bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def int_at_least(low: int, *, error: Refusal = ConfigError) -> Validator:
    """A whole number >= low."""
    return _validator(lambda v: is_int(v) and v >= low, f"a whole number >= {low}", error)


def optional_int_at_least(low: int, *, error: Refusal = ConfigError) -> Validator:
    """None, or a whole number >= low."""
    return _validator(
        lambda v: v is None or (is_int(v) and v >= low), f"None or a whole number >= {low}", error
    )


def number(
    wanted: str, holds: Callable[[float], bool], *, error: Refusal = ConfigError
) -> Validator:
    """A finite number for which `holds` is true; `wanted` says so in words."""
    return _validator(lambda v: is_number(v) and holds(v), wanted, error)


def norm_epsilon() -> Validator:
    """What a norm adds to a mean of squares: above 0, and far below what it is added to."""
    return number("a number > 0 and < 1", lambda value: 0 < value < 1)


def one_of(choices: Collection[Any], *, error: Refusal = ConfigError) -> Validator:
    """One of a few values."""
    return _validator(lambda v: v in choices, "one of " + ", ".join(map(repr, choices)), error)


def boolean(*, error: Refusal = ConfigError) -> Validator:
    """True or False."""
    return _validator(lambda v: isinstance(v, bool), "True or False", error)
