"""Teams of threads: torch's own pool and ours, several at once, forks, barriers, memory.

Each scenario of team_scenarios.py runs in a process of its own: a hang is a failure of that test.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from native.compiled import TESTS, compiled_program, library_file, needs_compiler, on_linux

pytestmark = [on_linux, needs_compiler]
SCENARIOS = (
    "teams",
    "memory_and_barriers",
    "several_at_once",
    "nested",
    "fork",
    "fork_beside_a_team",
)


def openmp_of_torch() -> str:
    """torch's GNU OpenMP, without importing torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    found = sorted(Path(spec.origin).parent.glob("lib/libgomp*"))
    if not found:
        pytest.skip("this torch has no GNU OpenMP")
    return str(found[0])


def run_scenario(name: str, pool: str, **environment: str) -> subprocess.CompletedProcess[str]:
    probes = compiled_program("probes", ["probes.cpp"], options=["-shared", "-fPIC"])
    file = openmp_of_torch() if pool == "openmp" else "own"
    return subprocess.run(
        [sys.executable, TESTS / "team_scenarios.py", name, library_file(), probes, file],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("pool", ["openmp", "own"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, pool: str) -> None:
    done = run_scenario(name, pool)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_a_run_inside_a_run_where_openmp_gives_it_threads() -> None:
    done = run_scenario("nested", "openmp", OMP_MAX_ACTIVE_LEVELS="2")
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT", "OMP_NUM_THREADS and dynamic"])
def test_openmp_may_give_fewer_threads(variable: str) -> None:
    limits = {"OMP_THREAD_LIMIT": "1"}
    if variable != "OMP_THREAD_LIMIT":
        limits = {"OMP_DYNAMIC": "true", "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}
    done = run_scenario("fewer", "openmp", **limits)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_where_there_are_no_more_threads_fewer_run() -> None:
    done = run_scenario("no_more_threads", "own")
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("name", ["out_of_memory", "nested_without_memory"])
def test_memory_that_cannot_be_had_is_named(name: str) -> None:
    done = run_scenario(name, "own")
    assert done.returncode == -signal.SIGABRT
    assert "pilotfish: no memory for" in done.stderr


TORCHS = """
import os, sys, torch
from pilotfish.kernels.native import library, why_not
from pilotfish.kernels.native.library import _loaded_openmp
assert library() is not None, why_not()
assert _loaded_openmp()._name.startswith(os.path.dirname(torch.__file__)), _loaded_openmp()
torch.set_num_threads(3)
sys.path.insert(0, sys.argv[1])
from team_scenarios import Library, in_a_child
def work(times=20):
    shared = Library.__new__(Library)
    shared.lib, shared.probes = library().lib, __import__("ctypes").CDLL(sys.argv[2])
    for _ in range(times):
        assert shared.add(3) == 3
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
x = torch.ones(1 << 20)
assert float((x + 1).sum()) == 2 << 20
with_torch = threads()
assert with_torch > before, "torch ran alone"
work()
assert threads() == with_torch, "the library made threads of its own beside torch's"
assert float((x + 1).sum()) == 2 << 20
assert in_a_child(work) == 0
work()
print("right")
"""


def test_the_library_runs_on_torchs_threads() -> None:
    openmp_of_torch()
    probes = compiled_program("probes", ["probes.cpp"], options=["-shared", "-fPIC"])
    done = subprocess.run(
        [sys.executable, "-c", TORCHS, TESTS, probes],
        env={**os.environ, "PILOTFISH_NATIVE_LIBRARY": str(library_file())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


BESIDE = """
import ctypes, sys, torch
from pilotfish.kernels.native.library import _loaded_openmp
for file in sys.argv[2:]:
    ctypes.CDLL(file)
torch.__file__ = sys.argv[1]
print(_loaded_openmp()._name)
"""


@pytest.mark.parametrize("place", ["torch/lib", "torch.libs"])
def test_another_packages_openmp_beside_torchs_is_not_taken_for_it(
    place: str, tmp_path: Path
) -> None:
    files = [tmp_path / place / "libgomp.so.1", tmp_path / "scikit_learn.libs/libgomp-abc.so.1"]
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(openmp_of_torch(), file)
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, tmp_path / "torch/__init__.py", *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, f"{files[0].resolve()}\n"), done.stderr
