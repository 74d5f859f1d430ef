"""However the driver's process ends, its workers end too, by themselves where they must.

One that is killed does nothing of its own, so it may be forked; one that ends by itself may not.
Workers that are forked are not its children, and see by its silence alone that it has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ranks.left import are_gone
from support import forked

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
{first}
from pilotfish.config import ParallelConfig
from pilotfish.ranks.ranks import Ranks
from ranks.fake import SERVE, Fake

x = torch.arange(3)
ranks = Ranks(ParallelConfig(tensor_parallel=2))
own = Fake(ranks.groups)
print(*ranks.pids, flush=True)
ranks.start({options!r}, serve=SERVE)
if {is_loading!r}:
    print("there", flush=True)
    time.sleep(60)
ranks.wait_ready()
ranks.call("execute", (x,), lambda: own.execute(x))
print("there", flush=True)
{then}
"""
"""Without a guard of `__main__`: workers do not run it."""
IN_A_PASS = "ranks.call('execute_but', (x, 0, 'SIGSTOP'), lambda: time.sleep(60))"


FORKS_RANKS = """
from support.forked import ranks_are_forked
forks = ranks_are_forked()
forks.__enter__()
"""


class Driver:
    """One that has come to `then`, or whose worker loads. pids: of its workers."""

    def __init__(
        self, then: str, *, loads: bool = False, is_forked: bool = False, forks_ranks: bool = False
    ) -> None:
        options = {"fail": (1, "sleep long")} if loads else {}
        first = FORKS_RANKS if forks_ranks and not is_forked else ""
        script = SCRIPT.format(
            tests=str(TESTS), options=options, is_loading=loads, first=first, then=then
        )
        near, far = os.pipe()
        self.said = os.fdopen(near)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        with os.fdopen(far, "wb") as written:
            self.process = (forked.popen if is_forked else subprocess.Popen)(
                [sys.executable, "-c", script],
                env={**os.environ, **(forked.ranks_too() if forks_ranks else {})},
                stdin=subprocess.PIPE,
                stdout=written,
                stderr=self._errors,
            )
        self.pids = [int(pid) for pid in self.said.readline().split()]
        line = self.said.readline()
        assert line == "there\n", (line, self.ended())

    def ended(self) -> tuple[int, str, str]:
        """How it has, within a while: its exit code, what it printed, and its errors."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(20)
        self._errors.seek(0)
        with self.said, self._errors:
            return code, self.said.read(), self._errors.read()


@pytest.mark.parametrize("then", ["pass", "sys.exit(3)", "1 / 0", "del ranks", "own = ranks"])
def test_a_driver_that_ends_without_closing(then: str) -> None:
    driver = Driver(then, forks_ranks=then == "1 / 0")
    code, _, errors = driver.ended()
    assert code == {"sys.exit(3)": 3, "1 / 0": 1}.get(then, 0), errors
    assert are_gone(driver.pids, 0)
    assert ("ZeroDivisionError" in errors) == (then == "1 / 0"), errors


@pytest.mark.parametrize("is_forked", [True, False], ids=["forked", "as users start it"])
@pytest.mark.parametrize("stage", ["between passes", "in a pass", "loading"])
def test_a_driver_that_is_killed(stage: str, is_forked: bool) -> None:
    then = IN_A_PASS if stage == "in a pass" else "time.sleep(60)"
    driver = Driver(then, loads=stage == "loading", is_forked=is_forked, forks_ranks=is_forked)
    driver.process.kill()
    assert are_gone(driver.pids)
    driver.ended()


def test_a_driver_that_is_killed_while_a_fork_of_it_lives_on() -> None:
    """The fork has the other end of all pipes and sockets, so that only the parent's end tells."""
    fork = (
        "child = os.fork()\nif not child: time.sleep(60)\nprint(child, flush=True)\ntime.sleep(60)"
    )
    driver = Driver(fork, is_forked=True)
    child = int(driver.said.readline())
    driver.process.kill()
    assert are_gone(driver.pids)
    os.kill(child, signal.SIGKILL)
    driver.ended()


def test_a_fork_that_ends_leaves_the_workers_to_its_parent() -> None:
    fork = (
        "child = os.fork()\n"
        "if not child: sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "print(ranks.call('execute', (x,), lambda: own.execute(x)).tolist())"
    )
    driver = Driver(fork, forks_ranks=True)
    _, said, errors = driver.ended()
    assert said.splitlines() == ["5", "[[0, 1, 2], [1, 2, 3]]"], errors
    assert are_gone(driver.pids, 0)
