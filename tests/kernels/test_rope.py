"""apply_rope against float64, in place on packed heads, and row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.rope import apply_rope, reference

apply_rope = placed(apply_rope)

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def angles(rows: int, width: int, interleaved: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """cos, sin: [T, R] float32 of random angles, both entries of a pair filled."""
    angle = torch.rand(rows, width // 2, generator=torch.Generator().manual_seed(seed)) * 100
    full = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return full.cos(), full.sin()


def exact(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Each pair as a complex number times cos + i sin, in float64."""
    width = cos.shape[1]
    pairs = x[..., :width].double()
    if not interleaved:
        pairs = pairs.view(*pairs.shape[:-1], 2, width // 2).transpose(-1, -2).flatten(-2)
        cos, sin = cos[:, : width // 2], sin[:, : width // 2]
    else:
        cos, sin = cos[:, ::2], sin[:, ::2]
    rotated = torch.view_as_complex(pairs.reshape(*pairs.shape[:-1], width // 2, 2))
    rotated = torch.view_as_real(rotated * torch.complex(cos.double(), sin.double())[:, None])
    if not interleaved:
        rotated = rotated.transpose(-1, -2)
    return torch.cat((rotated.flatten(-2), x[..., width:].double()), -1)


def usual(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Eager torch as model code writes it: every step in x's dtype."""
    width = cos.shape[1]
    head, cos, sin = x[..., :width], cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    if interleaved:
        rotated = torch.stack((-head[..., 1::2], head[..., ::2]), -1).flatten(-2)
    else:
        rotated = torch.cat((-head[..., width // 2 :], head[..., : width // 2]), -1)
    return torch.cat((head * cos + rotated * sin, x[..., width:]), -1)


def check(backend: KernelBackend, x: torch.Tensor, width: int, interleaved: bool) -> None:
    cos, sin = angles(x.shape[0], width, interleaved)
    wanted, eager = exact(x, cos, sin, interleaved), usual(x, cos, sin, interleaved)
    got = apply_rope(x.clone(), cos, sin, interleaved=interleaved, backend=backend)
    # Where eager was lucky: the float32 sum's error and one rounding of the largest value.
    unit = torch.finfo(x.dtype).eps * wanted.abs().max().item()
    limit = max(2 * (eager.double() - wanted).abs().max().item(), unit)
    assert (got.double() - wanted).abs().max().item() <= limit
    assert torch.equal(got[..., width:], x[..., width:])


@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 5),
    pairs=st.integers(1, 40),
    kept=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    interleaved=st.booleans(),
)
def test_error_is_no_worse_than_twice_eagers(
    *, rows: int, heads: int, pairs: int, kept: int, dtype: torch.dtype, interleaved: bool
) -> None:
    torch.manual_seed(rows * 1000 + pairs)
    x = torch.randn(rows, heads, 2 * pairs + kept).to(dtype)
    check(TORCH, x, 2 * pairs, interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "width", "rotated"), [(3, 64, 64), (5, 23, 14), (1, 2, 2)])
def test_triton_error_is_no_worse_than_twice_eagers(
    dtype: torch.dtype, interleaved: bool, heads: int, width: int, rotated: int
) -> None:
    check(TRITON, torch.randn(5, heads, width).to(dtype), rotated, interleaved)


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
@pytest.mark.parametrize("interleaved", [False, True])
def test_packed_heads_are_turned_in_place_and_v_is_kept(
    backend: KernelBackend, interleaved: bool
) -> None:
    qkv = torch.randn(4, 5, 16)
    before = qkv.clone()
    cos, sin = angles(4, 12, interleaved)
    heads = qkv.view(4, 80)[:, :48].view(4, 3, 16)
    got = apply_rope(heads, cos, sin, interleaved=interleaved, backend=backend)
    assert got.data_ptr() == qkv.data_ptr()
    wanted = reference.apply_rope(before[:, :3], cos, sin, interleaved)
    assert torch.allclose(qkv[:, :3], wanted, rtol=0, atol=2**-20)
    assert torch.equal(qkv[:, 3:], before[:, 3:])
    assert not torch.equal(qkv[:, :3], before[:, :3])


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turn_and_back(interleaved: bool) -> None:
    x = torch.randn(3, 2, 8)
    cos, sin = angles(3, 8, interleaved)
    there = apply_rope(x.clone(), cos, sin, interleaved=interleaved, backend=TORCH)
    back = apply_rope(there.clone(), cos, -sin, interleaved=interleaved, backend=TORCH)
    assert not torch.allclose(there, x, atol=1e-2)
    assert torch.allclose(back, x, rtol=0, atol=2**-20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "width", "rotated", "interleaved"), [(12, 64, 64, False), (9, 67, 34, True)]
)
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    dtype: torch.dtype, heads: int, width: int, rotated: int, interleaved: bool
) -> None:
    x = torch.randn(77, heads, width).to(dtype)
    cos, sin = angles(77, rotated, interleaved)

    def rows(i: int, j: int) -> torch.Tensor:
        return apply_rope(
            x[i:j].clone(), cos[i:j], sin[i:j], interleaved=interleaved, backend=TORCH
        )

    wanted = rows(0, 77)
    for count in range(1, 71):
        for i in (0, 1, 7):
            assert torch.equal(rows(i, i + count), wanted[i : i + count]), (count, i)


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_rows(dtype: torch.dtype) -> None:
    x = torch.randn(6, 3, 10).to(dtype)
    cos, sin = angles(6, 8, False)
    wanted = apply_rope(x.clone(), cos, sin, backend=TRITON)
    for i in range(6):
        for j in range(i + 1, 7):
            got = apply_rope(x[i:j].clone(), cos[i:j], sin[i:j], backend=TRITON)
            assert torch.equal(got, wanted[i:j])


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
def test_no_rows(backend: KernelBackend) -> None:
    cos, sin = angles(0, 8, False)
    assert apply_rope(torch.randn(0, 3, 8), cos, sin, backend=backend).shape == (0, 3, 8)
