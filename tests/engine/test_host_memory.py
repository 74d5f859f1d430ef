"""What a pass frees stays with the process: counted in page faults, in processes of their own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another malloc than glibc's"
)

TORCH = """
import torch
torch.set_num_threads(1)
def array():
    return torch.ones(1 << 20)
"""
LIBC = """
import ctypes
libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]
class array:
    def __init__(self):
        self.place = ctypes.c_void_p()
        assert libc.posix_memalign(ctypes.byref(self.place), 64, 4 << 20) == 0
        ctypes.memset(self.place, 1, 4 << 20)
    def __del__(self):
        libc.free(self.place)
"""
"""As torch takes it, which takes long to import."""
PROGRAM = """
import resource
from pilotfish.platform.heap import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    arrays = [array() for _ in range(4)]  # 4 MiB each
took = keep_freed_memory()
for _ in range(4):
    use()
before = faults()
for _ in range(8):
    use()
print(int(took), faults() - before)
"""
PAGES_OF_A_USE = 4 * (4 << 20) // os.sysconf("SC_PAGESIZE")


def run_program(program: str, **environment: str) -> list[int]:
    """The numbers that it prints; of malloc's settings it has those of `environment` alone."""
    kept = {n: v for n, v in os.environ.items() if n != "GLIBC_TUNABLES" and "MALLOC" not in n}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


def run(arrays: str, **environment: str) -> tuple[bool, int]:
    took, faults = run_program(arrays + PROGRAM, **environment)
    return took == 1, faults


def test_memory_is_not_taken_page_by_page_again() -> None:
    took, faults = run(TORCH)
    assert took
    assert faults < PAGES_OF_A_USE


CLOSING = """
from pathlib import Path
import torch
from pilotfish.platform.heap import keep_freed_memory, return_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
assert keep_freed_memory()
start = resident()
arrays, small = [], []
for _ in range(300):
    arrays.append(torch.ones(1 << 18))
    small.append(torch.ones(16))
most = resident()
del arrays
kept = resident()
return_freed_memory()
print((most - start) // 100, (kept - start) // 100, (resident() - start) // 100)
"""


def test_what_lies_below_memory_in_use_is_returned_when_asked() -> None:
    most, kept, after = run_program(CLOSING)
    assert kept > most // 2
    assert after < most // 4


SMALL_PIECES = """
import ctypes
from pilotfish.platform.heap import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [("fields", ctypes.c_size_t * 10)]
libc.mallinfo2.restype = Info
def kept_apart():
    for piece in [libc.malloc(24) for _ in range(60)]:
        libc.free(piece)
    return libc.mallinfo2().fields[6]
before = kept_apart()
keep_freed_memory()
print(before, kept_apart())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc before 2.33 does not tell"
)
def test_small_pieces_are_not_kept_apart() -> None:
    before, after = run_program(SMALL_PIECES)
    assert after < 24 * 10
    users_before, users_after = run_program(SMALL_PIECES, GLIBC_TUNABLES="glibc.malloc.mxfast=96")
    if before:  # the newest glibc keeps none apart by itself
        assert before > 40 * 24
        assert min(users_before, users_after) > 40 * 24


EITHER = pytest.mark.parametrize(
    "arrays", [LIBC, pytest.param(TORCH, marks=pytest.mark.slow)], ids=["libc", "torch"]
)


@EITHER
def test_another_tunable_of_the_users_changes_nothing(arrays: str) -> None:
    took, faults = run(arrays, GLIBC_TUNABLES="glibc.malloc.arena_max=8")
    assert took
    assert faults < PAGES_OF_A_USE


@EITHER
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "65536"),
        ("MALLOC_MMAP_THRESHOLD_", "65536"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=65536"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536"),
    ],
)
def test_the_users_own_settings_stand(arrays: str, name: str, value: str) -> None:
    took, faults = run(arrays, **{name: value})
    assert not took
    assert faults > PAGES_OF_A_USE
