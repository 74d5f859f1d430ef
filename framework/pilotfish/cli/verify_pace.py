"""How far a run of the conformance kit is, and how long the rest may take.

Knows: what promises cost beside one another, on tiny checkpoints. Does not know: what they are
about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from pilotfish.bench.measure import in_words

COSTS: dict[str, float] = {
    "parity with the oracle": 0.8,
    "the arithmetics agree": 1.1,
    "greedy tokens are the oracle's": 0.8,
    "any chunking equals one chunk": 0.8,
    "any mixture equals singles": 0.3,
    "rows are their own at real widths": 6.5,
    "any history equals committed only": 1.1,
    "preemption is invisible": 0.4,
    "tiny pools do not matter": 0.7,
    "warm prefix equals cold": 0.8,
    "same seed, same text": 2.7,
    "seeds matter": 0.2,
    "texts are naive decodings": 0.7,
    "limits cut the same text": 0.4,
    "every tensor counts": 0.8,
    "no drafter changes a text": 2.3,
    "right drafts count, wrong ones do not": 0.4,
    "a failing drafter loses nothing": 0.5,
    "options are read or refused": 1.8,
}
"""Seconds of a promise in all of a run on tiny checkpoints of one architecture, on two cores."""

_OTHERS = 0.05
"""Of a promise that stands not there."""
_WHOLE_S, _DEMO_S = 25.0, 405.0
"""Of that run, and of one on the demo model."""


class Pace:
    """Of a run. names: the promises, in order. is_tiny: of tiny checkpoints. clock: seconds."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        is_tiny: bool,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._names = names
        self._is_tiny = is_tiny
        self._clock = clock
        self._start = clock()
        self._num_begun = 0

    def before(self) -> str:
        """What can be said before anything is measured."""
        share = sum(map(_cost, self._names)) / _WHOLE_S
        num = f"{len(self._names)} promise{'s' if len(self._names) > 1 else ''}"
        if self._is_tiny:
            return f"{num}: {in_words(share * _WHOLE_S)} on two cores"
        return (
            f"{num}: {in_words(share * _DEMO_S)} on two cores for a model of 135 million "
            "parameters, longer for a larger one"
        )

    def begin(self, name: str) -> str:
        """What is checked next: n of N, and the time that is left, once some was measured."""
        done, left = self._names[: self._num_begun], self._names[self._num_begun :]
        self._num_begun += 1
        text = f"checking {self._num_begun} of {len(self._names)}: {name}"
        seconds = self._clock() - self._start
        if not done or seconds < 1:
            return text
        rest = seconds * sum(map(_cost, left)) / sum(map(_cost, done))
        return f"{text} ({in_words(rest)} left)"


def _cost(name: str) -> float:
    return COSTS.get(name, _OTHERS)
