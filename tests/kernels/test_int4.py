"""INT4 weights: the packed form number by number, and products with weights that stay packed."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.errors import WeightsError
from pilotfish.invariance.linear_probe import Product, mirrored, row_multiple
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.int4 import dequantize_int4, eager, quantize_int4, reference
from pilotfish.kernels.linear import LinearWeight, int4, linear, prepare_int4

TORCH = KernelBackend("torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(out: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words, every nibble possible, and scales of every size."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(-(2**31), 2**31, (out, width // 8), generator=generator)
    scale = torch.rand(out, width // 32, generator=generator) * 0.1 + 1e-3
    return packed.to(torch.int32), scale.bfloat16()


def spelled_out(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[O, K] float64, one number at a time: the format's own words."""
    rows, words = packed.shape
    group = words * 8 // scale.shape[1]
    out = torch.empty(rows, words * 8, dtype=torch.float64)
    for o in range(rows):
        for k in range(words * 8):
            word = int(packed[o, k // 8]) & 0xFFFFFFFF
            nibble = (word >> (4 * (k % 8))) & 0xF
            out[o, k] = (nibble - 8) * float(scale[o, k // group])
    return out


def test_the_lowest_nibble_is_the_first_column_and_eight_is_zero() -> None:
    packed = torch.tensor([[0x76543210, -0x01234568, -0x77777778, -0x77777778]], dtype=torch.int32)
    got = dequantize_int4(packed, torch.tensor([[1.0]]), torch.float32)
    assert got[0, :8].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1]
    assert got[0, 8:16].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert got[0, 16:].tolist() == [0] * 16


@given(
    out=st.integers(1, 5),
    groups=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from(DTYPES),
)
def test_every_number_is_the_formats(
    out: int, groups: int, dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    packed, scale = draw(out, 32 * groups, seed=out * 10 + groups)
    check_numbers(packed, scale.to(scale_dtype), dtype)


def check_numbers(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Every number of both implementations, bit for bit."""
    wanted = spelled_out(packed, scale).float().to(dtype)
    assert torch.equal(dequantize_int4(packed, scale, dtype), wanted)
    assert torch.equal(reference.dequantize(packed, scale, dtype), wanted)
    both = dequantize_int4(packed.expand(2, -1, -1), scale.expand(2, -1, -1), dtype)
    assert torch.equal(both, wanted.expand(2, -1, -1))


def test_quantized_and_back_is_within_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 96)
    packed, scale = quantize_int4(weight)
    assert (packed.dtype, packed.shape, scale.dtype, scale.shape) == (
        torch.int32, (6, 12), torch.bfloat16, (6, 3),
    )  # fmt: skip
    step = scale.float().repeat_interleave(32, dim=1)
    # The scale is rounded to bfloat16, so the largest may fall short of 7 by 7 * 2^-9 steps.
    assert ((dequantize_int4(packed, scale, torch.float32) - weight).abs() <= 0.515 * step).all()
    again, same = quantize_int4(dequantize_int4(packed, scale, torch.float32))
    assert torch.equal(dequantize_int4(again, same, torch.float32), spelled_out(packed, scale))


@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 4),
    out=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
)
def test_a_products_error_is_no_worse_than_twice_eagers(
    rows: int, groups: int, out: int, dtype: torch.dtype
) -> None:
    packed, scale = draw(out, 32 * groups, seed=rows + out)
    check_product(rows, packed, scale, dtype)


def check_product(rows: int, packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Against float64 on the exact numbers; eager multiplies the same numbers in the dtype."""
    width = packed.shape[1] * 8
    exact = spelled_out(packed, scale)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)
    got = linear(x, prepare_int4(packed, scale, dtype=dtype), backend=TORCH)
    wanted = x.double() @ exact.T
    usual = torch.nn.functional.linear(x, exact.to(dtype)).double()
    size = (x.double().abs() @ exact.abs().T).max().item()
    rounding = torch.finfo(dtype).eps * wanted.abs().max().item()
    limit = max(2 * (usual - wanted).abs().max().item(), width * 2**-24 * size + rounding)
    assert got.dtype == dtype
    assert (got.double() - wanted).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "out"), [(64, 48), (512, 512), (1024, 40)])
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    dtype: torch.dtype, width: int, out: int
) -> None:
    """The probe runs on such a weight; so do passes of every size."""
    half = quantize_int4(torch.randn(out, width // 2, generator=torch.Generator().manual_seed(1)))
    packed, scale = (torch.cat((part, part), dim=1) for part in half)
    weight = prepare_int4(packed, scale, dtype=dtype)
    product = Product.of(weight)
    assert product == Product.of_int4((out, width), dtype, 32)
    assert str(product).endswith(f"({weight.kind}, groups of 32)")
    assert row_multiple([product], backend=TORCH) is not None
    x = mirrored((64, width), -1).to(dtype)
    wanted = linear(x, weight, backend=TORCH)
    for rows in (*range(1, 20), 32, 33, 63):
        assert torch.equal(linear(x[1 : 1 + rows], weight, backend=TORCH), wanted[1 : 1 + rows])


def test_a_weight_stays_as_small_as_in_the_file() -> None:
    packed, scale = draw(64, 128)
    for dtype in DTYPES:
        weight = prepare_int4(packed, scale, dtype=dtype)
        assert weight.weight.nbytes == packed.nbytes
        assert weight.scale is not None
        assert weight.scale.nbytes == scale.nbytes
        assert (weight.in_features, weight.out_features, weight.group_size) == (128, 64, 32)
        wanted = "int4" if int4.can_use_operator(packed, scale, dtype) else "int4_plain"
        assert weight.kind == wanted


@pytest.mark.parametrize(
    ("packed", "scale", "told"),
    [
        (torch.zeros(4, 8), torch.zeros(4, 2), "float32"),
        (torch.zeros(8, dtype=torch.int32), torch.zeros(8, 2), "[8]"),
        (torch.zeros(4, 8, dtype=torch.int32), torch.zeros(3, 2), "[3, 2]"),
        (torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, 3), "3 scales"),
        (torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, 16), "16 scales"),
    ],
)
def test_what_is_no_packed_weight_is_told(
    packed: torch.Tensor, scale: torch.Tensor, told: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        prepare_int4(packed, scale, dtype=torch.float32)
    assert told in str(caught.value)


Unpack = Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]


def reversed_nibbles(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    right = spelled_out(packed, torch.ones_like(scale)).unflatten(1, (-1, 8)).flip(2).flatten(1)
    return (right * scale.double().repeat_interleave(32, 1)).to(dtype)


def no_eight(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    numbers = spelled_out(packed, torch.ones_like(scale)) + 8
    return (numbers * scale.double().repeat_interleave(32, 1)).to(dtype)


def next_groups_scale(
    packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return spelled_out(packed, scale.roll(1, dims=1)).to(dtype)


@pytest.mark.parametrize("bug", [reversed_nibbles, no_eight, next_groups_scale])
def test_planted_bugs_show(monkeypatch: pytest.MonkeyPatch, bug: Unpack) -> None:
    packed, scale = draw(4, 96)
    monkeypatch.setattr(eager, "dequantize", bug)
    with pytest.raises(AssertionError):
        check_numbers(packed, scale, torch.float32)
    if bug is next_groups_scale:  # a weight is repacked with scales of one
        return
    for width, dtype in ((4, torch.float32), (16, torch.bfloat16)):
        with pytest.raises(AssertionError):
            check_product(3, *draw(width, 96), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_the_wrong_group_show(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """In the operator's layout (bfloat16, where it is used) and in ours."""
    prepare = int4.prepare

    def wrong(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> LinearWeight:
        weight = prepare(packed, scale, dtype)
        assert weight.scale is not None
        groups = 0 if weight.kind == "int4" else 1
        return attrs.evolve(weight, scale=weight.scale.roll(1, dims=groups))

    check_product(3, *draw(16, 96), dtype)
    monkeypatch.setattr(int4, "prepare", wrong)
    with pytest.raises(AssertionError):
        check_product(3, *draw(16, 96), dtype)
