"""What tests of native kernels share: instruction sets in one process, threads, guarded memory.

Knows: how the library is told. Does not know: any kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native import library, why_not

TORCH = KernelBackend("torch")
NATIVE = KernelBackend("native")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_library = pytest.mark.skipif(library() is None, reason=f"no native library: {why_not()}")
"""For a whole file: `pytestmark = needs_library`."""


def instruction_sets() -> list[int]:
    """Indices of the sets that are compiled in and that this processor has."""
    native = library()
    if native is None:
        return []
    return [
        index
        for index in range(native.lib.pf_num_instruction_sets())
        if native.lib.pf_has_instruction_set(index)
    ]


@contextmanager
def instruction_set(index: int) -> Iterator[None]:
    """Inside of it every native call uses that set."""
    native = library()
    assert native is not None
    was, found = native.index, dict(native.addresses)
    native.addresses.clear()
    object.__setattr__(native, "index", index)
    try:
        yield
    finally:
        native.addresses.clear()
        native.addresses.update(found)
        object.__setattr__(native, "index", was)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside of it torch uses so many, and so does the library, even where the work is small."""
    module: Any = sys.modules["pilotfish.kernels.native.library"]
    was, small = torch.get_num_threads(), module.SMALL_WORK
    torch.set_num_threads(count)
    module.SMALL_WORK = 1
    try:
        yield
    finally:
        torch.set_num_threads(was)
        module.SMALL_WORK = small


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether both hold the same numbers bit by bit; any two NaN are the same."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    no_number = left.isnan()
    if not torch.equal(no_number, right.isnan()):
        return False
    kind = torch.int32 if left.dtype == torch.float32 else torch.int16
    return torch.equal(left[~no_number].view(kind), right[~no_number].view(kind))


def in_every_way(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of a call with every instruction set and 1 to 3 threads: the same bits, asserted.

    call: computes anew, on fresh copies of what it mutates.
    """
    wanted = call()
    for index in instruction_sets():
        for count in (1, 2, 3):
            with instruction_set(index), threads(count):
                assert same_bits(call(), wanted), (index, count)
    return wanted


_mappings: list[mmap.mmap] = []


def guarded(x: torch.Tensor) -> torch.Tensor:
    """A contiguous copy that ends where memory ends: to read or write behind it is a crash."""
    page = mmap.PAGESIZE
    size = x.numel() * x.element_size()
    held = -(-size // page) * page
    mapping = mmap.mmap(-1, held + page)
    _mappings.append(mapping)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mprotect(ctypes.c_void_p(start + held), ctypes.c_size_t(page), 0)
    assert done == 0, ctypes.get_errno()
    memory = torch.frombuffer(mapping, dtype=torch.uint8)[held - size : held]
    return memory.view(x.dtype).view(x.shape).copy_(x)
