"""SpeculativeConfig: which method drafts, how wide, and how its tokens are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from pilotfish.config.checks import is_int, one_of
from pilotfish.errors import ConfigError

Acceptance = Literal["coupled", "residual", "relaxed", "synthetic"]


def _check_width(instance: object, attribute: object, value: object) -> None:
    del instance, attribute
    if value == "adaptive" or (is_int(value) and value >= 1):  # type: ignore[operator]
        return
    if isinstance(value, Mapping) and all(
        is_int(k) and k >= 1 and is_int(v) and v >= 0 for k, v in value.items()
    ):
        return
    raise ConfigError(
        f"width is {value!r}; wanted 'adaptive', a whole number >= 1 (drafted tokens a step), or "
        "a schedule {smallest batch size: drafted tokens}"
    )


@attrs.frozen(kw_only=True)
class SpeculativeConfig:
    """How to speculate.

    method: the name a speculator plugin registered.
    width: drafted tokens a step: "adaptive", a number, or a schedule by batch size.
    acceptance: "coupled" keeps the text of plain decoding; "residual" keeps only its law;
        "relaxed" is lossy; "synthetic" is for benchmarks and not real.
    """

    method: str
    width: int | Literal["adaptive"] | Mapping[int, int] = attrs.field(
        default="adaptive", validator=_check_width
    )
    acceptance: Acceptance = attrs.field(
        default="coupled", validator=one_of(("coupled", "residual", "relaxed", "synthetic"))
    )
