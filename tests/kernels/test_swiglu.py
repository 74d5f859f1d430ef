"""swiglu against float64 and row by row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.swiglu import reference, swiglu

swiglu = placed(swiglu)

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
FASTEST = KernelBackend("torch", invariant=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN; random data are the same in every run."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def check(backend: KernelBackend, gate_up: torch.Tensor) -> None:
    gate, up = gate_up.chunk(2, -1)
    wanted = gate.double() * torch.sigmoid(gate.double()) * up.double()
    eager = torch.nn.functional.silu(gate.contiguous()) * up
    got = swiglu(gate_up, backend=backend)
    assert got.dtype == gate_up.dtype
    assert got.is_contiguous()
    # Where eager was lucky: one rounding of the largest value for each of silu and product.
    unit = torch.finfo(got.dtype).eps * wanted.abs().max().item()
    limit = max(2 * (eager.double() - wanted).abs().max().item(), unit)
    for result in (got, reference.swiglu(gate_up)):
        assert (result.double() - wanted).abs().max().item() <= limit


@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 150),
    scale=st.sampled_from((0.1, 1.0, 5.0)),
    dtype=st.sampled_from(DTYPES),
    backend=st.sampled_from((TORCH, FASTEST)),
)
def test_error_is_no_worse_than_twice_eagers(
    rows: int, width: int, scale: float, dtype: torch.dtype, backend: KernelBackend
) -> None:
    torch.manual_seed(rows * 1000 + width)
    x = torch.randn(rows, 2 * width + 3) * scale
    check(backend, x.to(dtype)[:, : 2 * width])  # rows apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [1, 37, 576, 1100])
def test_triton_error_is_no_worse_than_twice_eagers(dtype: torch.dtype, width: int) -> None:
    check(TRITON, torch.randn(5, 2 * width + 3).to(dtype)[:, : 2 * width])  # rows apart


def test_triton_in_bfloat16_is_within_two_truncations() -> None:
    """The interpreter truncates to bfloat16: one unit in the last place for silu and product."""
    gate_up = torch.randn(5, 2200).bfloat16()
    gate, up = gate_up.double().chunk(2, -1)
    wanted = gate * torch.sigmoid(gate) * up
    error = (swiglu(gate_up, backend=TRITON).double() - wanted).abs()
    assert (error <= 1.01 * 2 * torch.finfo(torch.bfloat16).eps * wanted.abs()).all()


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_gates_neither_overflow_nor_leak(backend: KernelBackend, dtype: torch.dtype) -> None:
    gate = torch.tensor([[-6e4, -200.0, 0.0, 200.0, 6e4]]).to(dtype)
    got = swiglu(torch.cat((gate, torch.ones(1, 5).to(dtype)), -1), backend=backend)
    assert torch.equal(got, gate.clamp(min=0))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [37, 1001, 1536, 1537])
@pytest.mark.usefixtures("three_threads")
def test_a_rows_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype, width: int) -> None:
    """Up to 70 rows of 1537: torch splits them between threads, in the middle of a row."""
    gate_up = torch.randn(77, 2 * width).to(dtype)
    wanted = swiglu(gate_up, backend=TORCH)
    for rows in range(1, 71):
        for i in (0, 1, 7):
            got = swiglu(gate_up[i : i + rows], backend=TORCH)
            assert torch.equal(got, wanted[i : i + rows]), (rows, i)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_silu_has_no_seam_in_16_bits(dtype: torch.dtype) -> None:
    """All 65536 values, in one long array (torch's vectors) and one by one (its scalars)."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)[bits.view(dtype).isfinite()]
    long = torch.nn.functional.silu(values)
    single = torch.stack([torch.nn.functional.silu(value) for value in values])
    assert torch.equal(long, single)


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_rows(dtype: torch.dtype) -> None:
    gate_up = torch.randn(6, 90).to(dtype)
    wanted = swiglu(gate_up, backend=TRITON)
    for i in range(6):
        for j in range(i + 1, 7):
            assert torch.equal(swiglu(gate_up[i:j], backend=TRITON), wanted[i:j])


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
def test_no_rows(backend: KernelBackend) -> None:
    assert swiglu(torch.randn(0, 8), backend=backend).shape == (0, 4)
