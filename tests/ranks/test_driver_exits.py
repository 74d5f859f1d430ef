"""However the driver's process ends, its workers end too, by themselves where they must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ranks.left import are_gone

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
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


def started(then: str, *, is_loading: bool = False) -> tuple[subprocess.Popen[str], list[int]]:
    """A driver that has come to `then`, or whose worker loads; and its workers."""
    options = {"fail": (1, "sleep long")} if is_loading else {}
    script = SCRIPT.format(tests=str(TESTS), options=options, is_loading=is_loading, then=then)
    driver = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    line = driver.stdout.readline()
    if line != "there\n":
        pytest.fail(f"{line!r} {driver.communicate()[1]}")
    return driver, pids


@pytest.mark.parametrize("then", ["pass", "sys.exit(3)", "1 / 0", "del ranks", "own = ranks"])
def test_a_driver_that_ends_without_closing(then: str) -> None:
    driver, pids = started(then)
    _, said = driver.communicate(timeout=20)
    assert driver.returncode == {"sys.exit(3)": 3, "1 / 0": 1}.get(then, 0), said
    assert are_gone(pids, 0)
    assert ("ZeroDivisionError" in said) == (then == "1 / 0"), said


@pytest.mark.parametrize("stage", ["between passes", "in a pass", "loading"])
def test_a_driver_that_is_killed(stage: str) -> None:
    then = IN_A_PASS if stage == "in a pass" else "time.sleep(60)"
    driver, pids = started(then, is_loading=stage == "loading")
    driver.kill()
    assert are_gone(pids)
    driver.communicate()


def test_a_driver_that_is_killed_while_a_fork_of_it_lives_on() -> None:
    """The fork has the other end of all pipes and sockets, so that only the parent's end tells."""
    fork = (
        "child = os.fork()\nif not child: time.sleep(60)\nprint(child, flush=True)\ntime.sleep(60)"
    )
    driver, pids = started(fork)
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    driver.kill()
    assert are_gone(pids)
    os.kill(child, signal.SIGKILL)
    driver.communicate()


def test_a_fork_that_ends_leaves_the_workers_to_its_parent() -> None:
    fork = (
        "child = os.fork()\n"
        "if not child: sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "print(ranks.call('execute', (x,), lambda: own.execute(x)).tolist())"
    )
    driver, pids = started(fork)
    said, errors = driver.communicate(timeout=20)
    assert said.splitlines() == ["5", "[[0, 1, 2], [1, 2, 3]]"], errors
    assert are_gone(pids, 0)
