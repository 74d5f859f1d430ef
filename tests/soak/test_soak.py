"""The soak test: drawn histories of calls, struck anywhere; no wrong token, leak or hang.

`--histories N` plays so many, `--first M` begins with another one. History M is always the same,
but for where a real signal comes.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pilotfish.engine.engine import Engine
from pilotfish.engine.request import Request
from pilotfish.engine.scheduler import Scheduler
from pilotfish.engine.turns import Turns
from pilotfish.state import StateManager
from soak.history import History
from soak.world import World
from speculation.pairs import Shelf, registry

CHUNK = 25
LIMIT_S = 900
"""A chunk that is not done by then hangs."""


class FailedHistory(Exception):
    """What a history raised, with all that it takes to play it again."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        begin, count = metafunc.config.getoption("first"), metafunc.config.getoption("histories")
        metafunc.parametrize("first", range(begin, begin + count, CHUNK))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(Shelf(tmp_path_factory.mktemp("soak"), registry()))
    yield world
    world.close()


@contextmanager
def limited() -> Iterator[None]:
    """Raises TimeoutError in the midst of what hangs, also in what waits for a lock.

    Where the main thread then waits for another that hangs, the process shows all and ends.
    """

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    before = signal.signal(signal.SIGUSR1, hangs)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(LIMIT_S, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(2 * LIMIT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def cheap_collections() -> Iterator[None]:
    """What there is already is not looked through in each: torch and transformers are large."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def play(numbers: range, world: World) -> int:
    """Plays histories; returns how many strikes came."""
    num_struck = 0
    for number in numbers:
        history = History(number, world)
        try:
            history.play()
        except BaseException as error:
            what = f"{type(error).__name__}: {error}"
            raise FailedHistory(
                f"history {number}: {what}; {history.told}, {history.setup}"
            ) from error
        num_struck += history.num_struck
    return num_struck


def test_histories(first: int, world: World, pytestconfig: pytest.Config) -> None:
    end = pytestconfig.getoption("first") + pytestconfig.getoption("histories")
    numbers = range(first, min(first + CHUNK, end))
    with limited(), cheap_collections():
        num_struck = play(numbers, world)
        gc.collect()
        files, threads = _open_files(), threading.active_count()
        left = [kept for kept in gc.get_objects() if isinstance(kept, Request)]
        assert not left, "requests outlive their histories"
        play(numbers[:3], world)
        gc.collect()
        assert (_open_files(), threading.active_count()) == (files, threads)
    assert num_struck or len(numbers) < CHUNK, "nothing was struck"


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# Planted bugs: the histories must see each of them.


def restarts_nothing(self: Engine) -> None:
    """After an interruption all goes on as if nothing had been."""
    self._is_whole = True


def keeps_what_was_half_taken(self: Request) -> None:
    """Tokens of a step that was cut off stay, and an end that was taken does not come."""


def keeps_the_dropped(self: Engine) -> None:
    """Who drops a stream is not heard."""


def keeps_pages(self: StateManager) -> None:
    """Pages that an interruption left to nobody stay nobody's."""
    for request_id in list(self._requests):
        self.release(request_id)


def forgets_who_waits(self: Scheduler) -> None:
    """After a restart requests wait nowhere."""
    RESTART(self)
    self._waiting.clear()


def closes_without_a_turn(self: Turns, work: Callable[[], Any]) -> Any:
    """No thread waits for another, and a stream that is dropped breaks into a pass."""
    return work()


RESTART = Scheduler.restart
SOON: list[tuple[type, str, Any]] = [
    (Engine, "_let_leavers_go", keeps_the_dropped),
    (Turns, "take", closes_without_a_turn),
]
"""Seen within a few histories."""
LATE: list[tuple[type, str, Any]] = [
    (StateManager, "reset", keeps_pages),
    (Engine, "_restart", restarts_nothing),
    (Request, "settle", keeps_what_was_half_taken),
    (Scheduler, "restart", forgets_who_waits),
]
"""Seen within some hundred."""


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [pytest.param(*bug, id=bug[2].__name__) for bug in SOON]
    + [pytest.param(*bug, id=bug[2].__name__, marks=pytest.mark.slow) for bug in LATE],
)
def test_a_planted_bug_is_seen(
    owner: type, name: str, bug: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, bug)
    monkeypatch.setattr("soak.test_soak.LIMIT_S", 60)
    with limited(), cheap_collections(), pytest.raises(FailedHistory):
        play(range(1500), world)
