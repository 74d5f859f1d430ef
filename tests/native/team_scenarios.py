"""Runs of teams that a test starts in processes of their own: `python team_scenarios.py NAME ...`.

Knows: the library's C interface and the probes. Does not know: the package, or (but for one
scenario) torch, so that a process is up at once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

NUM_ELEMENTS = 1001


class Add(ctypes.Structure):
    """Of the probe `add`."""

    _fields_ = (("out", c_void_p), ("count", c_int64), ("value", c_int64), ("team_size", c_void_p))


class Rounds(ctypes.Structure):
    """Of the probe `rounds`."""

    _fields_ = (("rounds", c_int64), ("wrong", c_void_p))


class Nested(ctypes.Structure):
    """Of the probe `nested`."""

    _fields_ = (
        ("run_one", c_void_p),
        ("inner", c_void_p),
        ("inner_args", c_void_p),
        ("wrong", c_void_p),
    )


class Library:
    """The library, with OpenMP's pool (a file) or its own threads ("own")."""

    def __init__(self, file: str, probes: str, pool: str) -> None:
        self.lib, self.probes = ctypes.CDLL(file), ctypes.CDLL(probes)
        self.lib.pf_run_one.argtypes = (c_void_p, c_void_p, c_int32)
        if pool != "own":
            openmp = ctypes.CDLL(pool)
            names = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
            self.lib.pf_use_openmp(*(self.address(openmp, name) for name in names))

    @staticmethod
    def address(lib: Any, name: str) -> c_void_p:
        return ctypes.cast(getattr(lib, name), c_void_p)

    def run(self, probe: str, args: ctypes.Structure, threads: int) -> None:
        self.lib.pf_run_one(self.address(self.probes, probe), ctypes.byref(args), threads)

    def add(self, threads: int, times: int = 1) -> int:
        """Runs `add`, checks its sums, and returns how large the team was."""
        out, size = (c_int64 * NUM_ELEMENTS)(), c_int32()
        args = Add(ctypes.addressof(out), NUM_ELEMENTS, 1, ctypes.addressof(size))
        for _ in range(times):
            self.run("add", args, threads)
        assert set(out) == {times}, set(out)
        return size.value


def teams(library: Library) -> None:
    """As large as they are asked to be, whatever they were before."""
    assert [library.add(threads) for threads in (1, 2, 4, 3, 0, 4)] == [1, 2, 4, 3, 1, 4]


def fewer(library: Library) -> None:
    """OpenMP gives one thread only: the environment says so."""
    assert library.add(4, 3) == 1


def memory_and_barriers(library: Library) -> None:
    """Every thread sees what the others wrote before a barrier, and its own scratch."""
    wrong = c_int64()
    for threads in (1, 2, 3, 4):
        library.run("rounds", Rounds(150, ctypes.addressof(wrong)), threads)
    assert wrong.value == 0


def several_at_once(library: Library) -> None:
    """Python threads that run teams at the same time."""
    failures = []

    def work() -> None:
        try:
            library.add(2, 200)
            memory_and_barriers(library)
        except AssertionError as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def nested(library: Library) -> None:
    """A run inside a run leaves the outer one's memory alone."""
    wrong, inner_wrong = c_int64(), c_int64()
    inner = Rounds(5, ctypes.addressof(inner_wrong))
    run_one = library.address(library.lib, "pf_run_one")
    rounds = library.address(library.probes, "rounds")
    args = Nested(run_one, rounds, ctypes.addressof(inner), ctypes.addressof(wrong))
    for threads in (1, 2, 3):
        library.run("nested", args, threads)
    assert (wrong.value, inner_wrong.value) == (0, 0)
    assert library.add(3) == 3


def in_a_child(work: Callable[[], None]) -> int:
    """What a forked child that does this exits with."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork(library: Library) -> None:
    """Children and grandchildren run teams of their own, and the parent goes on."""

    def work() -> None:
        assert library.add(3, 20) == 3
        memory_and_barriers(library)

    assert in_a_child(work) == 0, "before the parent ran a team"
    work()

    def work_and_fork() -> None:
        work()
        assert in_a_child(work) == 0

    assert in_a_child(work_and_fork) == 0, "after the parent ran a team"
    work()


def fork_beside_a_team(library: Library) -> None:
    """A fork while another thread's team is at work."""
    ends = threading.Event()

    def busy() -> None:
        while not ends.is_set():
            library.add(2, 10)

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        for _ in range(20):
            assert in_a_child(lambda: assert_equal(library.add(2, 10), 2)) == 0
    finally:
        ends.set()
        worker.join()


def no_more_threads(library: Library) -> None:
    """The system has no memory for threads: fewer run, and nothing is thrown."""
    library.add(2)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
    assert 1 <= library.add(40, 3) < 40


def out_of_memory(library: Library) -> None:
    """Scratch that cannot be had ends the process, with a word."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library.run("too_much_memory", Rounds(), 1)


def nested_without_memory(library: Library) -> None:
    """Nor can memory for a run inside a run."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run_one = library.address(library.lib, "pf_run_one")
    library.run(
        "nested_without_memory", Nested(run_one, library.address(library.probes, "nothing")), 1
    )


def assert_equal(got: object, wanted: object) -> None:
    """For where a statement is not allowed."""
    assert got == wanted, (got, wanted)


if __name__ == "__main__":
    globals()[sys.argv[1]](Library(*sys.argv[2:5]))
    print("right")
