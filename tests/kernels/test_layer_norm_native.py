"""layer_norm, native and torch: errors, bits in every way of running, memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import (
    DTYPES,
    NATIVE,
    TORCH,
    guarded,
    in_every_way,
    needs_library,
    same_bits,
)
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.layer_norm import add_layer_norm, layer_norm, reference
from pilotfish.kernels.rms_norm import add_scaled

EPS = 1e-5


@pytest.fixture(autouse=True)
def _poison() -> object:
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def exact(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """The definition in float64."""
    wide = (x, weight, bias)
    x64, weight64, bias64 = (None if one is None else one.double() for one in wide)
    assert x64 is not None
    return torch.nn.functional.layer_norm(x64, x.shape[-1:], weight64, bias64, EPS)


@pytest.mark.parametrize(
    "backend",
    [TORCH, pytest.param(NATIVE, marks=needs_library)],
    ids=("torch", "native"),
)
@given(
    rows=st.integers(1, 9),
    width=st.integers(2, 300),
    dtype=st.sampled_from(DTYPES),
    affine=st.sampled_from((0, 1, 2)),
    shift=st.sampled_from((0.0, 1.0, 50.0)),
    seed=st.integers(0, 2**31),
)
def test_error_is_no_worse_than_twice_eagers(
    backend: KernelBackend,
    *,
    rows: int,
    width: int,
    dtype: torch.dtype,
    affine: int,
    shift: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) + shift).to(dtype)
    given_ = [torch.randn(width, generator=generator) for _ in range(affine)]
    weight, bias = [*given_, None, None][:2]
    wanted = exact(x, weight, bias)
    usual = torch.nn.functional.layer_norm(x.float(), (width,), weight, bias, EPS).to(dtype)
    # Where eager was lucky: the mean's and the variance's roundings, seen beside the spread.
    spread = x.double().std(-1).amin().item() + EPS**0.5
    size = wanted.abs().max().item() + 1
    lost = 8 * 2**-24 * (1 + x.double().abs().max().item() / spread)
    limit = max(
        2 * (usual.double() - wanted).abs().max().item(),
        size * lost + torch.finfo(dtype).eps * size,
    )
    for got in (
        layer_norm(x, weight, bias, EPS, backend=backend),
        reference.layer_norm(x, weight, bias, EPS),
    ):
        assert got.dtype == dtype
        assert (got - wanted).abs().max().item() <= limit


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 37, 64, 577])
def test_bits_depend_on_the_row_alone(dtype: torch.dtype, width: int) -> None:
    x, residual = (torch.randn(33, width).to(dtype) for _ in range(2))
    weight, bias = torch.randn(width), torch.randn(width)

    def both(i: int, j: int) -> torch.Tensor:
        plain = layer_norm(x[i:j], weight, None, EPS, backend=NATIVE)
        added = add_layer_norm(
            x[i:j],
            residual[i:j].clone(),
            weight,
            bias,
            EPS,
            multiplier=0.22,
            backend=NATIVE,
        )
        return torch.stack((plain, *added))

    wanted = in_every_way(lambda: both(0, 33))
    for i, j in ((0, 1), (5, 6), (7, 10), (0, 32), (32, 33)):
        assert same_bits(both(i, j), wanted[:, i:j])


@pytest.mark.parametrize(
    "backend",
    [TORCH, pytest.param(NATIVE, marks=needs_library)],
    ids=("torch", "native"),
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplier", [1.0, 0.22])
def test_add_is_the_norm_of_the_rounded_sum(
    backend: KernelBackend, dtype: torch.dtype, multiplier: float
) -> None:
    x, residual = (torch.randn(9, 61).to(dtype) for _ in range(2))
    weight = torch.randn(61)
    before = residual.clone()
    normed, stream = add_layer_norm(
        x, residual, weight, None, EPS, multiplier=multiplier, backend=backend
    )
    assert stream.data_ptr() == residual.data_ptr()
    assert torch.equal(stream, add_scaled(before, x, multiplier, backend=backend))
    assert torch.equal(normed, layer_norm(stream, weight, None, EPS, backend=backend))


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 63, 80])
def test_memory_beyond_a_row_is_left_alone(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(3, width).to(dtype)
    weight, bias = torch.randn(width), torch.randn(width)
    residual = guarded(torch.zeros(3, width).to(dtype))
    wanted = layer_norm(x, weight, bias, EPS, backend=NATIVE)
    got, _ = add_layer_norm(
        guarded(x), residual, guarded(weight), guarded(bias), EPS, backend=NATIVE
    )
    assert torch.equal(got, wanted)


@needs_library
def test_what_is_no_number_stays_in_its_row() -> None:
    x = torch.randn(4, 50)
    wanted = layer_norm(x, None, None, EPS, backend=NATIVE)
    x[2, 49] = float("nan")
    got = layer_norm(x, None, None, EPS, backend=NATIVE)
    assert torch.equal(got[[0, 1, 3]], wanted[[0, 1, 3]])
    assert got[2].isnan().all()


@needs_library
def test_strided_rows_and_none() -> None:
    wide = torch.randn(5, 100)
    got = layer_norm(wide[:, 3:40], None, None, EPS, backend=NATIVE)
    assert got.is_contiguous()
    assert torch.equal(got, layer_norm(wide[:, 3:40].clone(), None, None, EPS, backend=NATIVE))
    assert layer_norm(wide[:0], None, None, EPS, backend=NATIVE).shape == (0, 100)
