"""Native elementwise functions: bits with every instruction set, and memory."""

from __future__ import annotations

import pytest
import torch

from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library
from kernels.test_elementwise import NAMES, call, draw
from pilotfish.kernels import elementwise

pytestmark = needs_library


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_bits_with_every_instruction_set(dtype: torch.dtype, name: str) -> None:
    x = draw((9, 1500), dtype)
    in_every_way(lambda: call(name, x, NATIVE))
    in_every_way(lambda: call(name, x[:, 1:1030], NATIVE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 37, 577])
def test_softmax_bits_with_every_instruction_set(dtype: torch.dtype, width: int) -> None:
    x = draw((33, width), dtype)
    in_every_way(lambda: elementwise.softmax(x, backend=NATIVE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 63, 80])
def test_memory_beyond_a_row_is_left_alone(dtype: torch.dtype, width: int) -> None:
    x = draw((3, width), dtype)
    beside = guarded(x)
    for name in NAMES:
        assert torch.equal(call(name, beside, NATIVE), call(name, x, NATIVE))
        assert torch.equal(call(name, beside[:, 1:], NATIVE), call(name, x, NATIVE)[:, 1:])
    wanted = elementwise.softmax(x, backend=NATIVE)
    assert torch.equal(elementwise.softmax(beside, backend=NATIVE), wanted)
