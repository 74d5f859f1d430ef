"""Ranks of a small model: what they answer, how they fail, and that nothing is left of them."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, PilotfishError, RankError
from pilotfish.ranks.ranks import Ranks
from pilotfish.ranks.spawn import Spawn
from ranks.fake import SERVE, Fake
from ranks.left import are_gone, listening_ports, num_threads, shared_memory

X = torch.arange(3)
SECONDS = 10.0
"""Within which a failure is said, where it takes no time-out; much for a busy machine."""


class Driver:
    """Rank 0 of the small model, and the others."""

    def __init__(self, size: int = 2, timeout_s: float = 30.0, **options: Any) -> None:
        self.ranks = Ranks(ParallelConfig(tensor_parallel=size, rank_timeout=timeout_s))
        self.own = Fake(self.ranks.groups)
        try:
            self.ranks.start(options, serve=SERVE)
            self.ranks.wait_ready()
        except BaseException:
            self.ranks.close()
            raise

    def call(self, name: str, *arguments: Any) -> Any:
        return self.ranks.call(name, arguments, lambda: getattr(self.own, name)(*arguments))

    def works(self) -> bool:
        size = self.ranks.parallel.num_ranks
        wanted = torch.stack([X + rank for rank in range(size)])
        return torch.equal(self.call("execute", X), wanted)


@pytest.fixture(scope="module")
def two() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.ranks.close()


def test_all_ranks_make_the_call(two: Driver) -> None:
    assert two.works()
    assert two.works()


def test_what_is_noted_is_done_first_and_once(two: Driver) -> None:
    two.own.calls.clear()
    before = two.call("count", X).tolist()[1]
    two.ranks.log += [("note", (1, "a")), ("note", (X,))]
    assert two.call("count", X).tolist() == [0, before + 2]
    assert two.call("count", X).tolist() == [0, before + 2]


def test_what_cannot_be_sent_costs_nothing(two: Driver) -> None:
    with pytest.raises(TypeError, match="wanted what can be sent"):
        two.call("execute", {1})
    assert two.works()


def test_an_interrupt_waits_for_the_end_of_the_pass_and_ranks_stay_in_step(two: Driver) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    begun = monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        two.call("execute_but", X, 1, "sleep")
    assert monotonic() - begun > 0.9
    assert two.works()


def test_ctrl_c_in_a_terminal_reaches_workers_and_is_not_theirs(two: Driver) -> None:
    for pid in two.ranks.pids:
        os.kill(pid, signal.SIGINT)
    assert two.works()


def test_two_models_in_one_process(two: Driver) -> None:
    other = Driver(3)
    assert other.works()
    assert two.works()
    assert other.works()
    other.ranks.close()
    assert two.works()


def test_neighbours_split_experts() -> None:
    parallel = ParallelConfig(tensor_parallel=4, expert_parallel=2, rank_timeout=30)
    with Ranks(parallel) as ranks:
        ranks.start(serve=SERVE)
        ranks.wait_ready()
        own, x = Fake(ranks.groups), torch.zeros(1, dtype=torch.int64)
        found = ranks.call("experts", (x,), lambda: own.experts(x))
    assert found.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_fork_is_refused_and_ends_nobody(two: Driver) -> None:
    pid = os.fork()
    if not pid:
        try:
            two.call("execute", X)
        except PilotfishError as error:
            two.ranks.close()
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert two.works()


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    try:
        driver = Driver()
        assert driver.call("threads", X).tolist() == [2, 2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)
    driver.ranks.close()


def test_threads_that_the_user_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    driver = Driver()
    assert driver.call("threads", X).tolist() == [1, 2]  # one here, as tests set it
    driver.ranks.close()


WORDS = {
    "raise": "raised ValueError in {}: planted",
    "raise EOFError": "raised EOFError in {}: planted",
    "exit": "ended with exit code 3 and printed last: printed before the end in {}",
    "SIGKILL": "was ended by SIGKILL in {}",
    "SIGSTOP": "did not answer for 1.5 s (rank_timeout) in {}",
}


@pytest.mark.parametrize("how", WORDS)
def test_a_rank_that_fails_in_a_pass_is_named_and_all_end(how: str) -> None:
    driver = Driver(3, 1.5 if how == "SIGSTOP" else 30.0)
    begun = monotonic()
    with pytest.raises(RankError) as raised:
        driver.call("execute_but", X, 2, how)
    assert monotonic() - begun < SECONDS
    assert str(raised.value).startswith(f"rank 2 of 3 {WORDS[how].format('execute_but')}")
    if how.startswith("raise"):
        assert "in fail" in "".join(raised.value.__notes__)
    assert are_gone(driver.ranks.pids)
    begun = monotonic()
    with pytest.raises(RankError) as again:
        driver.call("execute", X)
    assert monotonic() - begun < 0.5
    assert str(again.value) == str(raised.value) == str(driver.ranks.failure())
    driver.ranks.close()


@pytest.mark.parametrize("how", WORDS)
def test_a_rank_that_fails_while_it_loads_is_named_and_all_end(how: str) -> None:
    begun = monotonic()
    ranks = Ranks(ParallelConfig(tensor_parallel=2, rank_timeout=1.5 if how == "SIGSTOP" else 30))
    ranks.start({"fail": (1, how)}, serve=SERVE)
    with pytest.raises(RankError) as raised:
        ranks.wait_ready()
    assert monotonic() - begun < SECONDS + 10  # Python and torch have to start
    assert str(raised.value).startswith(f"rank 1 of 2 {WORDS[how].format('loading')}")
    assert ("give a larger rank_timeout" in str(raised.value)) == (how == "SIGSTOP")
    assert are_gone(ranks.pids)
    ranks.close()


def test_a_rank_that_does_not_even_take_a_message_is_given_up() -> None:
    driver = Driver(timeout_s=1.5)
    os.kill(driver.ranks.pids[0], signal.SIGSTOP)
    begun = monotonic()
    with pytest.raises(RankError, match="rank 1 of 2 did not answer for 1"):
        driver.call("execute", torch.zeros(16 << 20))
    assert monotonic() - begun < SECONDS
    assert are_gone(driver.ranks.pids)


def test_an_interrupt_while_ranks_load_leaves_nobody() -> None:
    ranks = Ranks(ParallelConfig(tensor_parallel=2))
    ranks.start({"fail": (1, "sleep long")}, serve=SERVE)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), ranks:
        ranks.wait_ready()
    assert are_gone(ranks.pids, 0)


def test_the_drivers_own_exception_ends_all_too() -> None:
    driver = Driver()
    with pytest.raises(
        RankError, match="rank 0 raised ValueError in execute_but: planted"
    ) as found:
        driver.call("execute_but", X, 0, "raise")
    assert isinstance(found.value.__cause__, ValueError)
    assert are_gone(driver.ranks.pids)


def test_a_rank_that_died_between_two_passes_is_named() -> None:
    driver = Driver()
    os.kill(driver.ranks.pids[0], signal.SIGTERM)
    assert are_gone(driver.ranks.pids)
    with pytest.raises(RankError, match="rank 1 of 2 was ended by SIGTERM"):
        driver.call("execute", X)


def test_a_process_that_ends_before_it_begins_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.ranks.spawn.BOOT", "import sys; sys.exit('no such thing')")
    ranks = Ranks(ParallelConfig(tensor_parallel=2))
    ranks.start(serve=SERVE)
    with pytest.raises(RankError, match="exit code 1 and printed last: no such thing"):
        ranks.wait_ready()


def test_a_launch_that_fails_half_way_leaves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    launch = Spawn.launch

    def second_fails(self: Spawn, *arguments: Any) -> Any:
        if started:
            raise OSError("no more processes")
        started.append(launch(self, *arguments))
        return started[0]

    monkeypatch.setattr(Spawn, "launch", second_fails)
    with pytest.raises(OSError, match="no more processes"):
        Ranks(ParallelConfig(tensor_parallel=3))
    assert started[0].process.poll() is not None


def test_an_option_that_cannot_be_sent_is_refused() -> None:
    ranks = Ranks(ParallelConfig(tensor_parallel=2))
    with ranks, pytest.raises(ConfigError, match="cannot be sent to the other ranks"):
        ranks.start({"registry": lambda: None}, serve=SERVE)
    assert are_gone(ranks.pids)


def test_closing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = listening_ports(), shared_memory(), len(os.listdir("/proc/self/fd")), num_threads()
    driver = Driver(3)
    assert driver.works()
    assert list(tmp_path.iterdir()) == []
    begun = monotonic()
    driver.ranks.close()
    driver.ranks.close()
    assert monotonic() - begun < 3
    assert are_gone(driver.ranks.pids, 0)
    with pytest.raises(PilotfishError, match="closed"):
        driver.call("execute", X)
    del driver
    gc.collect()
    deadline = monotonic() + 5
    while num_threads() > before[-1] and monotonic() < deadline:
        pass
    assert (
        listening_ports(),
        shared_memory(),
        len(os.listdir("/proc/self/fd")),
        num_threads(),
    ) == before


def test_an_interrupt_while_ranks_end_leaves_nobody() -> None:
    driver = Driver()
    os.kill(driver.ranks.pids[0], signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        driver.ranks.close()
    assert are_gone(driver.ranks.pids, 0)


def test_ranks_that_are_dropped_end() -> None:
    driver = Driver()
    assert driver.works()
    pids = driver.ranks.pids
    del driver
    gc.collect()
    assert are_gone(pids, 3.0)


def test_closing_in_the_midst_of_a_pass_ends_it() -> None:
    driver, found = Driver(), []

    def run() -> None:
        try:
            driver.call("execute_but", X, 1, "SIGSTOP")
        except PilotfishError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    threading.Event().wait(0.3)
    driver.ranks.close()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert "closed" in str(found[0])
    assert are_gone(driver.ranks.pids)
