"""WidthPolicy: how many tokens to draft in a step.

Knows: the number of requests, how often drafts were accepted, and how long passes took. Does not
know: drafters, requests or clocks. No policy can change a text: it only changes how it is reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pilotfish.config import SpeculativeConfig

DEFAULT_MOST = 8
"""Widest adaptive draft for a drafter that names no limit of its own."""

_MEMORY = 0.95
"""Weight of the past in a moving average; about twenty steps."""
_GAP = 1.05
"""A width is left for another only where that is so many times better."""
_PROBE_EVERY = 64
"""Steps between looks at a width that is thought to be worse."""


class WidthPolicy(Protocol):
    """Chooses a width for all requests of a step."""

    most: int
    """The largest width it ever chooses."""

    def choose(self, num_requests: int) -> int:
        """Tokens to draft for each of so many requests that decode; 0: do not speculate."""
        ...

    def observe(self, num_requests: int, num_rows: int, seconds: float) -> None:
        """A step with so many verify rows over all requests took so long, drafting included."""
        ...

    def observe_acceptance(self, num_drafted: int, num_accepted: int) -> None:
        """One request's draft was verified."""
        ...


def width_policy(config: SpeculativeConfig, max_width: int | None) -> WidthPolicy:
    """The policy that a config asks for. max_width: what the drafter was trained for."""
    width = config.width
    if isinstance(width, int):
        return FixedWidth(width)
    if isinstance(width, Mapping):
        return ScheduledWidth(width)
    return AdaptiveWidth(DEFAULT_MOST if max_width is None else max_width)


class FixedWidth:
    """The same width always."""

    def __init__(self, width: int) -> None:
        self.most = width

    def choose(self, num_requests: int) -> int:
        """As WidthPolicy."""
        return self.most

    def observe(self, num_requests: int, num_rows: int, seconds: float) -> None:
        """Nothing to learn."""

    def observe_acceptance(self, num_drafted: int, num_accepted: int) -> None:
        """Nothing to learn."""


class ScheduledWidth(FixedWidth):
    """The width of the largest batch size in the schedule that is not above the batch's."""

    def __init__(self, schedule: Mapping[int, int]) -> None:
        super().__init__(max(schedule.values()))
        self._schedule = sorted(schedule.items())

    def choose(self, num_requests: int) -> int:
        """As WidthPolicy; 0 below the first entry."""
        chosen = 0
        for size, width in self._schedule:
            if size <= num_requests:
                chosen = width
        return chosen


class AdaptiveWidth:
    """Maximises (expected tokens a step) / (seconds a step), by moving averages.

    Expected tokens of width w: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_w, a_i the rate at which the
    draft at place i is accepted when those before it are. Seconds of a step are averaged by
    (requests, width) as they are seen; a width not yet seen at this batch size is tried once.
    Width 0 is plain decoding: chosen where speculation loses, and left when a rare look says so.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._rates = [0.7] * most
        self._seconds: dict[tuple[int, int], float] = {}
        self._current = min(4, most)
        self._steps = 0

    def choose(self, num_requests: int) -> int:
        """As WidthPolicy."""
        size = _bucket(num_requests)
        self._steps += 1
        best = max(self._candidates(), key=lambda width: self._value(size, width))
        current = self._current
        if (size, current) not in self._seconds:
            return current
        if self._value(size, best) > _GAP * self._value(size, current):
            self._current = current = best
        if self._steps % _PROBE_EVERY == 0:
            return self._neighbour(current)
        return current

    def observe(self, num_requests: int, num_rows: int, seconds: float) -> None:
        """As WidthPolicy; the width is the mean of what was really verified."""
        key = (_bucket(num_requests), round(num_rows / max(1, num_requests)) - 1)
        before = self._seconds.get(key)
        self._seconds[key] = (
            seconds if before is None else _MEMORY * before + (1 - _MEMORY) * seconds
        )

    def observe_acceptance(self, num_drafted: int, num_accepted: int) -> None:
        """As WidthPolicy; places after the first rejection say nothing."""
        for place in range(min(num_drafted, num_accepted + 1, self.most)):
            hit = 1.0 if place < num_accepted else 0.0
            self._rates[place] = _MEMORY * self._rates[place] + (1 - _MEMORY) * hit

    def _candidates(self) -> list[int]:
        return [width for width in (0, 1, 2, 3, 4, 6, 8, 12, 16) if width <= self.most] or [0]

    def _neighbour(self, width: int) -> int:
        """The candidate above and below in turns: a look at what is thought to be worse."""
        candidates = self._candidates()
        place = min(range(len(candidates)), key=lambda i: abs(candidates[i] - width))
        step = 1 if (self._steps // _PROBE_EVERY) % 2 else -1
        return candidates[max(0, min(len(candidates) - 1, place + step))]

    def _value(self, size: int, width: int) -> float:
        """Tokens a second, guessed for widths not yet timed from those that were."""
        expected, chance = 1.0, 1.0
        for rate in self._rates[:width]:
            chance *= rate
            expected += chance
        return expected / self._guess_seconds(size, width)

    def _guess_seconds(self, size: int, width: int) -> float:
        timed = {w: s for (b, w), s in self._seconds.items() if b == size}
        if width in timed:
            return timed[width]
        if not timed:
            return 1.0 + 0.05 * width
        near = min(timed, key=lambda w: abs(w - width))
        return timed[near] * (1.0 + 0.05 * width) / (1.0 + 0.05 * near)


def _bucket(num_requests: int) -> int:
    """Batch sizes that share their averages: 1, 2, 4, 8, ..."""
    return 1 << max(0, num_requests - 1).bit_length()
