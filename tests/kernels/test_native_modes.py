"""Native kernels compute in IEEE 754's usual way, whatever the calling thread was told.

Only that thread is told, so the bits of other modes would depend on who computes a row.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library, same_bits, threads
from native.compiled import on_linux
from pilotfish.kernels.elementwise import softmax
from pilotfish.kernels.linear import linear, prepare_linear

pytestmark = [needs_library, on_linux]
FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}


@contextmanager
def flushing() -> Iterator[None]:
    """Inside of it this thread takes subnormal numbers for zeros."""
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounding_up() -> Iterator[None]:
    """Inside of it this thread rounds towards infinity."""
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetround(FE_UPWARD[platform.machine()]) == 0
    try:
        yield
    finally:
        libm.fesetround(0)


def is_flushing() -> bool:
    return float(torch.tensor([2e-38]) * 0.25) == 0.0


def is_rounding_up() -> bool:
    return float(torch.tensor([1.0]) + 2e-10) > 1.0


@pytest.mark.parametrize(
    ("mode", "is_on"), [(flushing, is_flushing), (rounding_up, is_rounding_up)]
)
def test_a_threads_modes_change_no_bit_and_stay_its_own(
    mode: Callable[[], AbstractContextManager[None]], is_on: Callable[[], bool]
) -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(12, 70) * 1e-19,
        prepare_linear(torch.randn(40, 70) * 1e-20, backend=NATIVE),
    )
    scores = torch.randn(12, 40) - 95.0
    scores[:, 0] = 0.0

    def computed() -> torch.Tensor:
        product = linear(x, weight, backend=NATIVE)
        return torch.stack((product, softmax(scores, backend=NATIVE)))

    wanted = computed()
    tiny = torch.finfo(torch.float32).smallest_normal
    assert ((wanted.abs() < tiny) & (wanted != 0)).any(dim=(1, 2)).all(), "no subnormal numbers"
    for count in (1, 2, 3):
        with threads(count), mode():
            found, is_still_on = computed(), is_on()
        assert same_bits(found, wanted), count
        assert is_still_on
    assert not is_on()
