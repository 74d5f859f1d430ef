"""WidthPolicy: how many tokens to draft in a step.

Knows: the number of requests, how often drafts were accepted, and how long passes took. Does not
know: drafters, requests or clocks. No policy can change a text: it only changes how it is reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from pilotfish.config import SpeculativeConfig
from pilotfish.config.speculative import MOST
from pilotfish.errors import ConfigError

DEFAULT_MOST = 7
"""Widest adaptive draft for a drafter that names no limit of its own."""

_WIDTHS = (0, 1, 2, 3, 5, 7, 11, 15)
"""Looked at; a pass verifies a row more, and even numbers of rows fill tiles."""
_FIRST = 4
_FIRST_RATE, _FIRST_WEIGHT = 0.6, 4
"""What a place's rate is thought to be, and how many observations that thought weighs."""
_MEMORY = 0.95
"""Weight of the past in a moving average; about twenty steps."""
_GAP = 1.05
"""A width is left for another only where that is so many times better."""
_PROBE_STEPS = 3
"""How long a look at a width that is thought to be worse lasts."""
_PROBE_AFTER, _PROBE_AT_MOST = 96, 768
"""Steps until the first look after a change, and the longest wait: each look that changes nothing
doubles the next wait, since it may have been dear."""


class WidthPolicy(Protocol):
    """Chooses a width for all requests of a step; one that derives from it need not learn."""

    most: int
    """The largest width it ever chooses."""

    def choose(self, num_requests: int) -> int:
        """Tokens to draft for each of so many requests that decode; 0: do not speculate."""
        ...

    def observe(self, num_requests: int, width: float, seconds: float) -> None:
        """A pass that verified `width` tokens a request, on the average, took so long."""
        return

    def observe_drafting(self, num_requests: int, width: int, seconds: float) -> None:
        """Drafting `width` tokens for each of so many requests took so long."""
        return

    def observe_acceptance(self, num_drafted: int, num_accepted: int) -> None:
        """One request's draft was verified."""
        return


def check_width(config: SpeculativeConfig, most: int | None) -> None:
    """Raises ConfigError for a width above `most`, which the drafter was trained for."""
    given = config.width
    width = max(given.values()) if isinstance(given, Mapping) else given
    if isinstance(width, int) and most is not None and width > most:
        raise ConfigError(
            f"width is {width} and the draft was made for at most {most} tokens a step; "
            f"wanted {most} or less, or 'adaptive'"
        )


def width_policy(config: SpeculativeConfig, max_draft_tokens: int | None) -> WidthPolicy:
    """The policy that a config asks for. max_draft_tokens: what the drafter was trained for."""
    width = config.width
    if isinstance(width, int):
        return FixedWidth(width)
    if isinstance(width, Mapping):
        return ScheduledWidth(width)
    return AdaptiveWidth(DEFAULT_MOST if max_draft_tokens is None else min(max_draft_tokens, MOST))


class ScheduledWidth(WidthPolicy):
    """The width of the largest batch size in the schedule that is not above the batch's."""

    def __init__(self, schedule: Mapping[int, int]) -> None:
        self.most = max(schedule.values())
        self._schedule = sorted(schedule.items())

    def choose(self, num_requests: int) -> int:
        """As WidthPolicy; 0 below the first entry."""
        chosen = 0
        for size, width in self._schedule:
            if size <= num_requests:
                chosen = width
        return chosen


class FixedWidth(ScheduledWidth):
    """The same width always."""

    def __init__(self, width: int) -> None:
        super().__init__({1: width})


@attrs.define
class _Times:
    """Seconds by width, as moving averages; widths between and beyond by straight lines."""

    seconds: dict[int, float] = attrs.field(factory=dict)

    def add(self, width: int, seconds: float) -> None:
        before = self.seconds.get(width)
        kept = seconds if before is None else _MEMORY * before + (1 - _MEMORY) * seconds
        self.seconds[width] = kept

    def guess(self, width: int) -> float:
        if width in self.seconds:
            return self.seconds[width]
        known = sorted(self.seconds, key=lambda other: abs(other - width))[:2]
        if not known:
            return 1.0
        near = self.seconds[known[0]]
        if len(known) == 1:
            return near
        slope = (self.seconds[known[1]] - near) / (known[1] - known[0])
        return max(near / 10, near + slope * (width - known[0]))


@attrs.define
class _Rate:
    """How often a place's draft is accepted: a mean that becomes a moving average."""

    value: float
    weight: float = _FIRST_WEIGHT

    def add(self, hit: float) -> None:
        self.weight += 1
        self.value += max(1 / self.weight, 1 - _MEMORY) * (hit - self.value)


@attrs.define
class _SizeStats:
    """What is known of batches of about one size.

    current: the width in use. probe, left: a width that is looked at, for so many steps more.
    wait, waited: steps between looks, and steps since the last one.
    """

    current: int
    passes: _Times = attrs.field(factory=_Times)
    drafting: _Times = attrs.field(factory=_Times)
    tried: set[int] = attrs.field(factory=set)
    probe: int = 0
    left: int = 0
    wait: int = _PROBE_AFTER
    waited: int = 0


class AdaptiveWidth:
    """Maximises (expected tokens a step) / (seconds a step), by moving averages.

    Expected tokens of width w: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_w, a_i the rate at which the
    draft at place i is accepted when those before it are; a place that was never reached is thought
    to have the rate of the last one that was. The seconds of a pass that verifies w
    tokens and those of drafting w are kept apart, by batch size, since a step verifies what the
    step before drafted. The first width and plain decoding (0) are each tried at once; later a
    width thought to be worse is looked at now and then, so that neither is held to for ever.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._widths = [*(width for width in _WIDTHS if width < most), most]
        self._rates: list[_Rate] = []
        self._stats: dict[int, _SizeStats] = {}

    def choose(self, num_requests: int) -> int:
        """As WidthPolicy."""
        stats = self._stats_of(num_requests)
        if stats.left:
            stats.left -= 1
            return stats.probe
        for width in (stats.current, 0):
            if width not in stats.tried:
                stats.tried.add(width)
                return self._look(stats, width)
        best = max(self._widths, key=lambda width: self._value(stats, width))
        if self._value(stats, best) > _GAP * self._value(stats, stats.current):
            stats.current, stats.wait, stats.waited = best, _PROBE_AFTER, 0
        stats.waited += 1
        if stats.waited >= stats.wait:
            stats.wait, stats.waited = min(2 * stats.wait, _PROBE_AT_MOST), 0
            return self._look(stats, self._second_best(stats))
        return stats.current

    def observe(self, num_requests: int, width: float, seconds: float) -> None:
        """As WidthPolicy."""
        self._stats_of(num_requests).passes.add(round(width), seconds)

    def observe_drafting(self, num_requests: int, width: int, seconds: float) -> None:
        """As WidthPolicy."""
        self._stats_of(num_requests).drafting.add(width, seconds)

    def observe_acceptance(self, num_drafted: int, num_accepted: int) -> None:
        """As WidthPolicy; places after the first rejection say nothing."""
        for place in range(min(num_drafted, num_accepted + 1, self.most)):
            hit = 1.0 if place < num_accepted else 0.0
            if place == len(self._rates):
                self._rates.append(_Rate(self._rate(place)))
            self._rates[place].add(hit)

    def _rate(self, place: int) -> float:
        known = self._rates[: place + 1]
        return known[-1].value if known else _FIRST_RATE

    def _stats_of(self, num_requests: int) -> _SizeStats:
        """Batch sizes that share their averages: 1, 2, 4, 8, ..."""
        size = 1 << max(0, num_requests - 1).bit_length()
        if size not in self._stats:
            self._stats[size] = _SizeStats(current=min(_FIRST, self.most))
        return self._stats[size]

    @staticmethod
    def _look(stats: _SizeStats, width: int) -> int:
        stats.probe, stats.left = width, _PROBE_STEPS - 1
        return width

    def _second_best(self, stats: _SizeStats) -> int:
        others = [width for width in self._widths if width != stats.current]
        return max(others, key=lambda width: self._value(stats, width), default=stats.current)

    def _value(self, stats: _SizeStats, width: int) -> float:
        """Tokens a second."""
        expected, chance = 1.0, 1.0
        for place in range(width):
            chance *= self._rate(place)
            expected += chance
        return expected / (stats.passes.guess(width) + stats.drafting.guess(width))
