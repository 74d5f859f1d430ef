"""rms_norm and add_rms_norm against float64, against each other, and row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.rms_norm import Cast, add_rms_norm, reference, rms_norm

add_rms_norm = placed(add_rms_norm)
rms_norm = placed(rms_norm)

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASTS: tuple[Cast, ...] = ("before_weight", "after_weight")
EPS = 1e-5


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN; random data are the same in every run."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def exact(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """The definition in float64, never rounded."""
    x = x.double()
    normed = x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS)
    return normed if weight is None else normed * weight.double()


def usual(x: torch.Tensor, weight: torch.Tensor | None, cast: Cast) -> torch.Tensor:
    """Eager torch as model code writes it."""
    f32 = x.to(torch.float32)
    f32 = f32 * torch.rsqrt(f32.pow(2).mean(-1, keepdim=True) + EPS)
    if weight is None:
        return f32.to(x.dtype)
    if cast == "before_weight":
        return (weight * f32.to(x.dtype)).to(x.dtype)
    return (weight.float() * f32).to(x.dtype)


def error_limit(wanted: torch.Tensor, eager: torch.Tensor) -> float:
    """Twice eager's error, or where eager was lucky, what the roundings can add up to.

    Float32 steps, in units of 2^-24: six single ones (times 1/D, plus eps, square root, inverse,
    times x, times weight), and a square and a sum of log2(D) + 4 additions, halved by the root.
    Then two roundings to the dtype, each half an eps.
    """
    steps = 6 + (math.log2(wanted.shape[-1]) + 5) / 2
    size = wanted.abs().max().item()
    roundings = steps * 2**-24 * size + torch.finfo(eager.dtype).eps * size
    return max(2 * (eager.double() - wanted).abs().max().item(), roundings)


def draw_rows(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows whose sizes differ a thousandfold, some near eps, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x *= 10 ** (torch.rand(shape[0], generator=generator) * 3 - 2).view(-1, *[1] * (len(shape) - 1))
    x[0] = 0
    return x.to(dtype)


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
        weight = torch.randn(width, generator=generator).to(
            dtype if gain == "same" else torch.float32
        )
    kept = x.clone()
    got = rms_norm(x, weight, EPS, cast=cast, backend=TORCH)
    wanted = exact(x, weight)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert torch.equal(x, kept)
    limit = error_limit(wanted, usual(x, weight, cast))
    for result in (got, reference.rms_norm(x, weight, EPS, cast)):
        assert (result - wanted).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("width", [1, 37, 64, 576])
def test_triton_error_is_no_worse_than_twice_eagers(
    dtype: torch.dtype, cast: Cast, width: int
) -> None:
    x = draw_rows((7, 3, width), width, dtype)
    for weight in (None, torch.randn(width).to(dtype)):
        got = rms_norm(x, weight, EPS, cast=cast, backend=TRITON)
        wanted = exact(x, weight)
        limit = error_limit(wanted, usual(x, weight, cast))
        assert (got - wanted).abs().max().item() <= limit


@pytest.mark.parametrize("cast", CASTS)
def test_triton_in_bfloat16_is_within_two_truncations(cast: Cast) -> None:
    """The interpreter truncates to bfloat16: one unit in the last place for each rounding."""
    x, weight = draw_rows((7, 576), 3, torch.bfloat16), torch.randn(576).bfloat16()
    got = rms_norm(x, weight, EPS, cast=cast, backend=TRITON).double()
    wanted = exact(x, weight)
    roundings = 2 if cast == "before_weight" else 1
    unit = torch.finfo(torch.bfloat16).eps
    assert ((got - wanted).abs() <= 1.01 * roundings * unit * wanted.abs() + 1e-30).all()


def test_the_casts_differ_where_they_should() -> None:
    x, weight = draw_rows((64, 576), 1, torch.bfloat16), torch.randn(576).bfloat16()
    first, after = (rms_norm(x, weight, EPS, cast=cast, backend=TORCH) for cast in CASTS)
    assert not torch.equal(first, after)
    scale = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS)
    in_order = (x * scale).to(torch.bfloat16) * weight
    # Only an element within float32's error of a tie may round otherwise.
    assert (first != in_order).float().mean().item() < 1e-3
    assert (after != in_order).float().mean().item() > 0.1


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplier", [1.0, 0.22])
def test_add_is_the_norm_of_the_rounded_sum(
    backend: KernelBackend, dtype: torch.dtype, multiplier: float
) -> None:
    x, residual = (torch.randn(9, 61).to(dtype) for _ in range(2))
    weight = torch.randn(61).to(dtype)
    before = residual.clone()
    normed, stream = add_rms_norm(
        x, residual, weight, EPS, multiplier=multiplier, cast="after_weight", backend=backend
    )
    assert stream.data_ptr() == residual.data_ptr()
    assert torch.equal(normed, rms_norm(stream, weight, EPS, cast="after_weight", backend=backend))
    _, wanted = reference.add_rms_norm(
        x, before, weight, EPS, multiplier=multiplier, cast="after_weight"
    )
    if backend is TRITON and dtype == torch.bfloat16:
        unit = torch.finfo(dtype).eps  # the interpreter truncates
        assert ((stream.float() - wanted.float()).abs() <= unit * wanted.float().abs()).all()
    elif dtype == torch.float32:
        # A fused multiply-add may keep the product's rounding error out of the sum.
        assert ((stream - wanted).abs() <= 2**-24 * 2 * x.abs() + 2**-23 * wanted.abs()).all()
    else:
        assert torch.equal(stream, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [37, 576, 1000])
def test_a_rows_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype, width: int) -> None:
    x, residual = (draw_rows((77, width), seed, dtype) for seed in (1, 2))
    weight = torch.randn(width).to(dtype)

    def both(i: int, j: int) -> tuple[torch.Tensor, ...]:
        plain = rms_norm(x[i:j], weight, EPS, cast="before_weight", backend=TORCH)
        return plain, *add_rms_norm(
            x[i:j],
            residual[i:j].clone(),
            weight,
            EPS,
            multiplier=0.22,
            cast="after_weight",
            backend=TORCH,
        )

    wanted = both(0, 77)
    for rows in range(1, 71):
        for i in (0, 1, 7):
            for got, full in zip(both(i, i + rows), wanted, strict=True):
                assert torch.equal(got, full[i : i + rows]), (rows, i)


def test_a_wide_rows_bits_do_not_depend_on_its_neighbours() -> None:
    """Two rows are enough for torch to use several threads."""
    x = torch.randn(9, 32771)
    wanted = rms_norm(x, None, EPS, cast="after_weight", backend=TORCH)
    for rows in range(2, 9):
        for i in (0, 1):
            got = rms_norm(x[i : i + rows], None, EPS, cast="after_weight", backend=TORCH)
            assert torch.equal(got, wanted[i : i + rows]), (rows, i)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_heads_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Heads are a strided view of a packed qkv; enough of them that torch uses all threads."""
    qkv = torch.randn(77, 15 * 61).to(dtype)
    weight = torch.randn(61).to(dtype)

    def heads(i: int, j: int) -> torch.Tensor:
        view = qkv[i:j, : 12 * 61].view(-1, 12, 61)
        return rms_norm(view, weight, EPS, cast="before_weight", backend=TORCH)

    wanted = heads(0, 77)
    for rows in range(1, 71):
        for i in (0, 1, 7):
            assert torch.equal(heads(i, i + rows), wanted[i : i + rows]), (rows, i)


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_rows_and_strided_heads(dtype: torch.dtype) -> None:
    heads = torch.randn(6, 5, 36).to(dtype)[:, :4, :33]
    got = rms_norm(heads, None, EPS, cast="after_weight", backend=TRITON)
    flat = heads.reshape(24, 33)
    for i in range(23):
        for j in (i + 1, 24):
            rows = rms_norm(flat[i:j], None, EPS, cast="after_weight", backend=TRITON)
            assert torch.equal(rows, got.view(24, 33)[i:j])


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
def test_no_rows(backend: KernelBackend) -> None:
    x = torch.randn(0, 8)
    assert rms_norm(x, None, EPS, cast="after_weight", backend=backend).shape == (0, 8)
