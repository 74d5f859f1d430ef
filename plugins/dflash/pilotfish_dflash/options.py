"""Reading one option of a draft's config, whatever object it stands in.

Knows: kinds of values. Does not know: what any option means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilotfish.config.hf_options import option
from pilotfish.errors import ConfigError

WHOSE = "the draft's config"


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
