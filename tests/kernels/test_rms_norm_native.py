"""Native rms_norm, norm_heads and add_scaled: errors, bits in every way of running, memory."""

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
from kernels.test_rms_norm import CASTS, EPS, draw_rows, error_limit, exact, usual
from pilotfish.kernels.rms_norm import (
    Cast,
    add_rms_norm,
    add_scaled,
    norm_heads,
    reference,
    rms_norm,
)

pytestmark = needs_library


@pytest.fixture(autouse=True)
def _poison() -> object:
    """Every torch.empty is filled with NaN."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@given(
    rows=st.integers(1, 9),
    heads=st.none() | st.integers(1, 5),
    width=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    cast=st.sampled_from(CASTS),
    gain=st.sampled_from(("none", "same", "float32")),
    seed=st.integers(0, 2**31),
)
def test_error_is_no_worse_than_twice_eagers(
    *,
    rows: int,
    heads: int | None,
    width: int,
    dtype: torch.dtype,
    cast: Cast,
    gain: str,
    seed: int,
) -> None:
    shape = (rows, width) if heads is None else (rows, heads, width)
    x = draw_rows(shape, seed, dtype)
    weight = None
    if gain != "none":
        generator = torch.Generator().manual_seed(seed + 1)
        weight = torch.randn(width, generator=generator)
        weight = weight.to(dtype) if gain == "same" else weight
    kept = x.clone()
    got = rms_norm(x, weight, EPS, cast=cast, backend=NATIVE)
    wanted = exact(x, weight)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert torch.equal(x, kept)
    limit = error_limit(wanted, usual(x, weight, cast))
    assert (got - wanted).abs().max().item() <= limit


@pytest.mark.parametrize("width", [4099, 16384])
def test_wide_rows_are_nearer_than_eager(width: int) -> None:
    x = torch.randn(4, width)
    got = rms_norm(x, None, EPS, cast="after_weight", backend=NATIVE)
    wanted = exact(x, None)
    limit = (usual(x, None, "after_weight") - wanted).abs().max().item()
    assert (got - wanted).abs().max().item() <= 2 * limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplier", [1.0, 0.22])
@pytest.mark.parametrize("width", [61, 576])
def test_add_is_the_norm_of_the_rounded_sum(
    dtype: torch.dtype, multiplier: float, width: int
) -> None:
    x, residual = (torch.randn(9, width).to(dtype) for _ in range(2))
    weight = torch.randn(width).to(dtype)
    before = residual.clone()
    normed, stream = add_rms_norm(
        x, residual, weight, EPS, multiplier=multiplier, cast="after_weight", backend=NATIVE
    )
    assert stream.data_ptr() == residual.data_ptr()
    wanted = rms_norm(stream, weight, EPS, cast="after_weight", backend=NATIVE)
    assert torch.equal(normed, wanted)
    assert torch.equal(stream, add_scaled(before, x, multiplier, backend=NATIVE))
    _, summed = reference.add_rms_norm(
        x, before, weight, EPS, multiplier=multiplier, cast="after_weight"
    )
    if dtype == torch.float32:
        # A fused multiply-add keeps the product's rounding error out of the sum.
        exactly = before.double() + torch.tensor(multiplier).double() * x.double()
        assert torch.equal(stream, exactly.float())
    else:
        assert torch.equal(stream, summed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strided_stream_is_updated_and_nothing_beside_it(dtype: torch.dtype) -> None:
    wide, packed = torch.randn(5, 100).to(dtype), torch.randn(5, 90).to(dtype)
    before = wide.clone()
    x, stream = packed[:, 7:44], wide[:, 20:57]
    add_rms_norm(x, stream, None, EPS, cast="after_weight", backend=NATIVE)
    assert torch.equal(stream, before[:, 20:57] + x)
    assert torch.equal(wide[:, :20], before[:, :20])
    assert torch.equal(wide[:, 57:], before[:, 57:])
    out = torch.full((5, 50), 7.0, dtype=dtype)
    add_scaled(stream, x, 0.5, out=out[:, :37], backend=NATIVE)
    assert torch.equal(out[:, :37], add_scaled(stream, x, 0.5, backend=NATIVE))
    assert (out[:, 37:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 37, 64, 576, 1000])
def test_bits_depend_on_the_row_alone(dtype: torch.dtype, width: int) -> None:
    x, residual = (draw_rows((33, width), seed, dtype) for seed in (1, 2))
    weight = torch.randn(width).to(dtype)

    def both(i: int, j: int) -> torch.Tensor:
        plain = rms_norm(x[i:j], weight, EPS, cast="before_weight", backend=NATIVE)
        added = add_rms_norm(
            x[i:j],
            residual[i:j].clone(),
            weight,
            EPS,
            multiplier=0.22,
            cast="after_weight",
            backend=NATIVE,
        )
        return torch.stack((plain, *added))

    wanted = in_every_way(lambda: both(0, 33))
    for i, j in ((0, 1), (5, 6), (7, 10), (0, 32), (32, 33)):
        assert same_bits(both(i, j), wanted[:, i:j])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [61, 64])
def test_heads_are_normed_in_place_each_with_its_weight(dtype: torch.dtype, width: int) -> None:
    packed = torch.randn(7, 15 * width).to(dtype)
    weight = torch.randn(12, width).to(dtype)

    def normed() -> torch.Tensor:
        qkv = packed.clone()
        heads = qkv.view(7, 15, width)[:, :12]
        assert norm_heads(heads, weight, EPS, backend=NATIVE).data_ptr() == qkv.data_ptr()
        return qkv

    got = in_every_way(normed).view(7, 15, width)
    before = packed.view(7, 15, width)
    assert torch.equal(got[:, 12:], before[:, 12:])
    for head in range(12):
        wanted = rms_norm(before[:, head], weight[head], EPS, cast="before_weight", backend=NATIVE)
        assert torch.equal(got[:, head], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 63, 80])
def test_memory_beyond_a_row_is_left_alone(dtype: torch.dtype, width: int) -> None:
    x, residual = guarded(torch.randn(3, width).to(dtype)), guarded(torch.ones(3, width).to(dtype))
    weight = guarded(torch.randn(width).to(dtype))
    wanted = rms_norm((residual + x), weight.clone(), EPS, cast="before_weight", backend=NATIVE)
    got, _ = add_rms_norm(x, residual, weight, EPS, cast="before_weight", backend=NATIVE)
    assert torch.equal(got, wanted)
    heads = guarded(torch.randn(3, 2, width).to(dtype))
    copy = heads.clone()
    norm_heads(heads, guarded(weight.expand(2, -1)), EPS, backend=NATIVE)
    assert torch.equal(heads, norm_heads(copy, weight.expand(2, -1).clone(), EPS, backend=NATIVE))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(value: float) -> None:
    x = torch.randn(4, 50)
    wanted = rms_norm(x, None, EPS, cast="after_weight", backend=NATIVE)
    x[2, 49] = value
    got = rms_norm(x, None, EPS, cast="after_weight", backend=NATIVE)
    assert torch.equal(got[[0, 1, 3]], wanted[[0, 1, 3]])
    assert got[2, 49].isnan()


def test_no_rows() -> None:
    x = torch.randn(0, 8)
    assert rms_norm(x, None, EPS, cast="after_weight", backend=NATIVE).shape == (0, 8)
