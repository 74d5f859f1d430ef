"""Timing: rounds that alternate between the sides, and the median of each.

Knows: clocks and rounds. Does not know: what is run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that one call took, and what it returned."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


class Median(float):
    """The median of rounds. spread: half of what lies between the extremes, in shares of it; None
    for one round.
    """

    spread: float | None

    @classmethod
    def of(cls, figures: Sequence[float]) -> Self:
        """Of one figure a round."""
        found = cls(statistics.median(figures))
        width = max(figures) - min(figures)
        found.spread = width / 2 / abs(found) if len(figures) > 1 and found else None
        return found


def alternate(
    sides: Sequence[Callable[[int], float]], *, rounds: int, warmup: int = 1
) -> list[Median]:
    """Calls every side once a round and returns each side's median.

    A side takes the number of the round and returns its own figure, so that it can leave its
    preparation out of it. The order turns round by round: noise that lasts hits all sides.
    """
    figures: list[list[float]] = [[] for _ in sides]
    order = range(len(sides))
    for round_number in range(-warmup, rounds):
        for index in reversed(order) if round_number % 2 else order:
            figure = sides[index](round_number)
            if round_number >= 0:
                figures[index].append(figure)
    return [Median.of(values) for values in figures]


def in_words(seconds: float) -> str:
    """About how long that is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"
