"""Native swiglu: errors, bits in every way of running, memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import (
    DTYPES,
    NATIVE,
    guarded,
    in_every_way,
    needs_library,
    same_bits,
)
from pilotfish.kernels.swiglu import reference, swiglu

pytestmark = needs_library


def exact(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, 1)
    return gate / (1 + torch.exp(-gate)) * up


@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 1100),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from((0.1, 3.0, 40.0)),
    seed=st.integers(0, 2**31),
)
def test_error_is_no_worse_than_twice_eagers(
    *, rows: int, width: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate_up = (torch.randn(rows, 2 * width, generator=generator) * size).to(dtype)
    got, wanted = swiglu(gate_up, backend=NATIVE), exact(gate_up)
    gate, up = gate_up.chunk(2, 1)
    usual = torch.nn.functional.silu(gate) * up
    # Each element: twice eager's error, or two roundings to the dtype and five to float32.
    allowed = 2 * (usual.double() - wanted).abs()
    roundings = (torch.finfo(dtype).eps + 5 * 2**-24) * wanted.abs()
    tiny = 2 * torch.finfo(dtype).smallest_normal * (1 + up.double().abs())
    assert got.dtype == dtype
    assert ((got - wanted).abs() <= torch.maximum(allowed, roundings) + tiny).all()
    if dtype != torch.float32:
        # silu is rounded before the product, as the definition reads.
        same = (got == reference.swiglu(gate_up)).float()
        assert same.numel() == 0 or same.mean().item() > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 37, 512, 1000])
def test_bits_depend_on_the_row_alone(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(33, 2 * width) * 4).to(dtype)
    wanted = in_every_way(lambda: swiglu(gate_up, backend=NATIVE))
    for i, j in ((0, 1), (5, 6), (7, 10), (0, 32), (32, 33)):
        assert same_bits(swiglu(gate_up[i:j], backend=NATIVE), wanted[i:j])
    wide = torch.full((33, 2 * width + 9), float("nan")).to(dtype)
    wide[:, 3 : 3 + 2 * width] = gate_up
    assert same_bits(swiglu(wide[:, 3 : 3 + 2 * width], backend=NATIVE), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_elements_bits_do_not_depend_on_its_place(dtype: torch.dtype) -> None:
    """Every place of a row, the tail too, holds the same pair."""
    values = (torch.randn(200) * 4).to(dtype)
    rows = torch.cat((values[:, None].expand(-1, 37), values.flip(0)[:, None].expand(-1, 37)), 1)
    got = swiglu(rows.contiguous(), backend=NATIVE)
    assert same_bits(got, got[:, :1].expand(-1, 37).contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 63, 80])
def test_memory_beyond_a_row_is_left_alone(dtype: torch.dtype, width: int) -> None:
    gate_up = torch.randn(3, 2 * width).to(dtype)
    wanted = swiglu(gate_up, backend=NATIVE)
    assert torch.equal(swiglu(guarded(gate_up), backend=NATIVE), wanted)


def test_what_is_no_number_stays_in_its_place() -> None:
    gate_up = torch.randn(3, 80)
    wanted = swiglu(gate_up, backend=NATIVE)
    gate_up[1, 39] = float("nan")
    got = swiglu(gate_up, backend=NATIVE)
    assert got.isnan().nonzero().tolist() == [[1, 39]]
    got[1, 39] = wanted[1, 39]
    assert same_bits(got, wanted)
