"""SpeculativeConfig: which method drafts, how wide, and how its tokens are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from pilotfish.config.checks import int_at_least, is_int, number, one_of
from pilotfish.config.peers import SPECULATION, answering_peers
from pilotfish.config.sampling import OF_SAMPLING
from pilotfish.errors import ConfigError

Acceptance = Literal["coupled", "residual", "relaxed", "synthetic"]


MOST = 64
"""Most tokens that are drafted in a step."""


SYNTHETIC_RATE = 0.8
"""Share of drafts that count in a benchmark where nothing else is said."""


def _check_method(instance: Any, attribute: Any, value: Any) -> None:
    del instance, attribute
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"method is {value!r}; wanted the name of a method, such as 'ngram'")


def _check_width(instance: object, attribute: object, value: object) -> None:
    del instance, attribute
    if value == "adaptive" or (is_int(value) and 1 <= value <= MOST):
        return
    if (
        isinstance(value, Mapping)
        and value
        and all(is_int(k) and k >= 1 and is_int(v) and 0 <= v <= MOST for k, v in value.items())
    ):
        return
    raise ConfigError(
        f"width is {value!r}; wanted 'adaptive', 1 to {MOST} (drafted tokens a step), or "
        "a schedule {smallest batch size: drafted tokens}"
    )


def _check_thinking_tokens(instance: Any, attribute: Any, value: Any) -> None:
    del instance, attribute
    if value is not None and not (
        isinstance(value, tuple)
        and len(set(value)) == 2 == len(value)
        and all(is_int(t) and t >= 0 for t in value)
    ):
        raise ConfigError(f"thinking_tokens is {value!r}; wanted two different ids: (start, end)")


_check_share = number("a number from 0 to 1", lambda value: 0 <= value <= 1)


@answering_peers(SPECULATION, ConfigError, OF_SAMPLING)
@attrs.frozen(kw_only=True)
class SpeculativeConfig:
    """How to speculate.

    method: the name a speculator plugin registered.
    width: drafted tokens a step: "adaptive", a number, or a schedule by batch size, of which the
        entry of the largest size that is not above the batch's counts; below the first nothing is
        drafted.
    acceptance: "coupled" keeps the text of plain decoding; "residual" keeps only its law;
        "relaxed" is lossy; "synthetic" is for benchmarks and not real.
    thinking_tokens: (start, end) ids of a thinking phase, for "relaxed"; None: the checkpoint's.
    relaxed_top, relaxed_slack: a draft is accepted in a thinking phase if it is among so many
        likeliest tokens and at most so much less probable than the likeliest.
    synthetic_rate: share of drafted tokens that "synthetic" accepts.
    """

    method: str = attrs.field(validator=_check_method)
    width: int | Literal["adaptive"] | Mapping[int, int] = attrs.field(
        default="adaptive", validator=_check_width
    )
    acceptance: Acceptance = attrs.field(
        default="coupled", validator=one_of(("coupled", "residual", "relaxed", "synthetic"))
    )
    thinking_tokens: tuple[int, int] | None = attrs.field(
        default=None, validator=_check_thinking_tokens
    )
    relaxed_top: int = attrs.field(default=10, validator=int_at_least(1))
    relaxed_slack: float = attrs.field(default=0.6, validator=_check_share)
    synthetic_rate: float = attrs.field(default=SYNTHETIC_RATE, validator=_check_share)

    def __attrs_post_init__(self) -> None:
        if self.acceptance != "synthetic" and self.synthetic_rate != SYNTHETIC_RATE:
            raise ConfigError(
                f"synthetic_rate is {self.synthetic_rate} and acceptance {self.acceptance!r}, "
                "which does not read it; wanted acceptance 'synthetic' too"
            )
        if self.acceptance != "relaxed" and self.thinking_tokens is not None:
            raise ConfigError(
                f"thinking_tokens is {self.thinking_tokens} and acceptance {self.acceptance!r}, "
                "which does not read it; wanted acceptance 'relaxed' too"
            )
