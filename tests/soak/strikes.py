"""Strikes: exceptions out of nowhere, at a drawn call of Pilotfish or by a real signal.

Knows: calls, frames and timers. Does not know: what is struck.
"""

from __future__ import annotations

import gc
import inspect
import random
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE


GUARDS = ("torch.autograd.grad_mode", "torch.utils._contextlib")


class Planted(Exception):
    """Marks what was raised on purpose."""


class PlantedError(Planted, RuntimeError):
    pass


class PlantedMemoryError(Planted, MemoryError):
    pass


class PlantedInterrupt(KeyboardInterrupt):
    pass


class PlantedExit(SystemExit):
    pass


KINDS: tuple[type[BaseException], ...] = (
    PlantedError, PlantedMemoryError, PlantedInterrupt, PlantedExit,
)  # fmt: skip


PARTS = (
    ("pilotfish", 10_000),
    ("pilotfish_", 300),
    ("pilotfish.engine", 2000),
    ("pilotfish.engine.request", 500),
    ("pilotfish.engine.scheduler", 300),
    ("pilotfish.tokenization.detokenizer", 60),
    ("pilotfish.engine.engine", 300),
    ("pilotfish.engine.turns", 40),
    ("pilotfish.sampling", 500),
    ("pilotfish.speculation", 300),
    ("pilotfish.state", 2000),
    ("pilotfish.layers", 300),
)
"""Where calls are struck, and how late: there are a hundred calls of kernels to one that takes in a
token, and most of what can go wrong is in the latter.
"""


class Strike(Protocol):
    """Does work, and may strike in it. has_struck: it did; it does so once."""

    has_struck: bool

    def during(self, work: Callable[[], T]) -> T: ...


class Peace:
    """Never strikes."""

    has_struck = False

    def during(self, work: Callable[[], T]) -> T:
        return work()


class AtCall:
    """Raises as the given call of a Python function of Pilotfish begins, or as it returns.

    part: modules whose names begin so; their calls are counted over all that is done under it. Not
    in generators: what a profiler raises there ends a generator without its `finally`, which no
    real exception does. The garbage collector waits meanwhile: it may finalize a stream in the
    midst of a C function, whose own result CPython then loses.
    """

    def __init__(self, at: int, part: str, kind: type[BaseException]) -> None:
        self.has_struck = False
        self._left = at
        self._part = part
        self._kind = kind

    def during(self, work: Callable[[], T]) -> T:
        if self.has_struck:
            return work()
        gc.disable()
        sys.setprofile(self._see)
        try:
            return work()
        finally:
            sys.setprofile(None)
            gc.enable()

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return") or not _is_of(self._part, frame):
            return
        if frame.f_code.co_flags & GENERATORS or _is_told(self._kind, frame):
            return
        self._left -= 1
        if self._left <= 0 and not self.has_struck:
            self.has_struck = True
            raise self._kind(f"planted at the {event} of {frame.f_code.co_qualname}")


class AtTime:
    """A real signal, whose handler raises as Python's own does for Ctrl-C, after so many seconds.

    Only where Pilotfish is at work, and not in the few lines of Python by which torch enters and
    leaves its inference mode: an interrupt there leaves the thread in it till the exception is
    forgotten. Else it comes a little later.
    """

    def __init__(self, seconds: float, kind: type[BaseException]) -> None:
        self.has_struck = False
        self._seconds = seconds
        self._is_armed = False
        self._kind = kind

    def during(self, work: Callable[[], T]) -> T:
        if self.has_struck:
            return work()
        before = signal.signal(signal.SIGALRM, self._handle)
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            return work()
        finally:
            self._is_armed = False  # a signal that is on its way sets no other timer
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.has_struck or not self._is_armed:
            return
        place = frame
        while place is not None and not _is_of("pilotfish", place):
            place = place.f_back
        is_guard = frame is not None and frame.f_globals.get("__name__", "") in GUARDS
        if place is None or is_guard or _is_told(self._kind, place):
            signal.setitimer(signal.ITIMER_REAL, 0.0003)
            return
        self.has_struck = True
        raise self._kind(f"a signal in {place.f_code.co_qualname}")


def draw_strike(draw: random.Random) -> Strike:
    """No strike, or one of either kind, at any point of what an action does."""
    kind = draw.choice(KINDS)
    chosen = draw.random()
    if chosen < 0.25:
        return Peace()
    if chosen < 0.7:
        part, most = draw.choice(PARTS)
        return AtCall(int(most ** draw.random()), part, kind)
    return AtTime(10 ** draw.uniform(-4, -1.3), kind)


def _is_told(kind: type[BaseException], frame: FrameType) -> bool:
    """Whether it is an error of a drafter's or model's `release`, which is told in a warning.

    What they held then stays with them: nobody can know better. An interrupt there is heard again.
    """
    is_release = frame.f_code.co_name == "release" and not _is_of("pilotfish.state", frame)
    return is_release and issubclass(kind, Exception)


def _is_of(part: str, frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith(part)
