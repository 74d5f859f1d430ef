"""Reading one option of a draft's config, whatever object it stands in.

Knows: kinds of values. Does not know: what any option means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pilotfish.config.hf_options import option
from pilotfish.errors import ConfigError


def section(options: Any, name: str) -> Mapping[str, Any]:
    """An object inside a config, empty where there is none. Raises ConfigError for another kind."""
    raw = option(options, name) or {}
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, str | int | float | Sequence):
        raise ConfigError(f"the draft's {name} is {raw!r}; wanted an object of options")
    fields: Mapping[str, Any] = vars(raw)
    return fields


def boolean(name: str, value: object) -> bool:
    """On or off; None is off."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigError(f"the draft's {name} is {value!r}; wanted true or false")


def whole(name: str, value: object, *, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ConfigError(f"the draft's {name} is {value!r}; wanted a whole number >= {least}")


def number(name: str, value: object) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ConfigError(f"the draft's {name} is {value!r}; wanted a number")
