"""Native linear: every kind of weight, the order of sums, bits in every way of running, memory."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library, same_bits
from kernels.weight_cases import FLOAT_KINDS, draw_rows, widths
from pilotfish.errors import WeightsError
from pilotfish.invariance.linear_probe import Product, row_multiple
from pilotfish.kernels.linear import (
    LinearWeight,
    PackedRows,
    linear,
    lookup_rows,
    prepare_blocks,
    prepare_int4,
    prepare_linear,
)
from pilotfish.kernels.linear.native import KINDS, linear_into

pytestmark = needs_library

ROWS = (1, 2, 3, 4, 5, 7, 8, 12, 13, 19, 70, 95, 96, 130, 515)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.mark.parametrize("outputs", [5, 70])
@pytest.mark.parametrize("rows", [1, 8, 9, 95, 96, 600])
def test_a_product_of_no_columns_is_the_bias(rows: int, outputs: int) -> None:
    x, numbers = torch.empty(rows, 0), torch.empty(outputs, 0)
    for bias in (torch.zeros(outputs), torch.randn(outputs)):
        weight = prepare_linear(numbers, bias if bias.any() else None, backend=NATIVE)
        got = in_every_way(lambda weight=weight: linear(x, weight, backend=NATIVE))
        assert torch.equal(got, bias.expand(rows, outputs))


def prepared(*parts: PackedRows, bias: torch.Tensor | None = None) -> LinearWeight:
    return prepare_blocks(parts, bias, dtype=torch.float32)


def assert_near(
    got: torch.Tensor, x: torch.Tensor, numbers: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Error against float64 within that of sums of this shape, and one rounding."""
    wanted = x.double() @ numbers.double().T
    size = x.double().abs() @ numbers.double().abs().T
    if bias is not None:
        wanted, size = wanted + bias.double(), size + bias.double().abs()
    # A number passes a chain of 256, an addition for every 4096 columns, a tree of 4, the bias
    # (Higham 2002, eq. 4.4); then the result is rounded once.
    steps = min(256, -(-x.shape[1] // 16)) + -(-x.shape[1] // 4096) + 4 + 1
    limit = steps * 2.0**-24 * size + torch.finfo(got.dtype).eps / 2 * wanted.abs() + 1e-37
    if got.dtype == torch.float16:
        limit = limit + 2.0**-25
    assert ((got.double() - wanted).abs() <= limit * 1.01).all()


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_rows_are_the_files_own_numbers(kind: str) -> None:
    tokens = torch.tensor([8, 0, 3, 3])
    for seed, width in enumerate(widths(kind)):
        rows, numbers = draw_rows(kind, 9, width, seed)
        weight = prepared(rows)
        for dtype in DTYPES:
            got = in_every_way(lambda w=weight, d=dtype: lookup_rows(w, tokens, d))
            assert torch.equal(got, numbers[tokens].to(dtype))
    absent = lookup_rows(weight, torch.tensor([9, -1, 0]), torch.float32)
    assert absent[:2].isnan().all()
    assert torch.equal(absent[2], numbers[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("q")])
def test_an_infinite_scale_gives_the_same_bits_everywhere(kind: str) -> None:
    rows, _ = draw_rows(kind, 1, 256, 0)
    at = {"q6_k": 208}.get(kind, 0)
    rows.blocks.view(torch.uint8)[0, at : at + 2] = torch.tensor([0, 0x7C], dtype=torch.uint8)
    weight, token = prepared(rows), torch.tensor([0])
    got = in_every_way(lambda: lookup_rows(weight, token, torch.float32))
    assert not got.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_bits_in_every_way_and_are_near(kind: str) -> None:
    for seed, width in enumerate(widths(kind)):
        rows, numbers = draw_rows(kind, (37, 1, 70, 16, 5, 64)[seed], width, seed)
        weight = prepared(rows)
        x = torch.randn(130, width)
        whole = in_every_way(lambda x=x, w=weight: linear(x, w, backend=NATIVE))
        assert_near(whole, x, numbers)
        for count in ROWS:
            some = in_every_way(lambda x=x[-count:], w=weight: linear(x, w, backend=NATIVE))
            assert same_bits(some, whole[-count:]), (kind, width, count)
        if width > 1:  # the judge must be able to say no
            with pytest.raises(AssertionError):
                assert_near(whole, x.roll(1, 1), numbers)


@given(
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 30),
    outputs=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from(DTYPES),
    bias=st.none() | st.sampled_from(DTYPES),
    stride=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_rows_of_any_dtype_with_bias(
    *,
    kind: str,
    rows: int,
    outputs: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    bias: torch.dtype | None,
    stride: int,
    seed: int,
) -> None:
    width = widths(kind)[seed % len(widths(kind))]
    packed, numbers = draw_rows(kind, outputs, width, seed)
    added = None if bias is None else torch.randn(outputs).to(bias)
    weight = prepared(packed, bias=added)
    x = torch.randn(rows, width + stride).to(dtype)[:, :width]
    got = linear(x, weight, backend=NATIVE, out_dtype=out_dtype)
    assert got.shape == (rows, outputs)
    assert got.dtype == out_dtype
    assert_near(got, x, numbers, added)
    assert same_bits(linear(x.float(), weight, backend=NATIVE).to(out_dtype), got)
    assert linear(x, weight, backend=NATIVE).dtype == dtype


def rounded(exact: Fraction) -> np.float32:
    """To the nearest float32, ties to even; normal numbers and zero only."""
    if exact == 0:
        return np.float32(0)
    size, power = abs(exact), 0
    while size >= 2**24:
        size, power = size / 2, power + 1
    while size < 2**23:
        size, power = size * 2, power - 1
    value = np.float32(round(size)) * np.float64(2.0) ** power
    return np.float32(-value if exact < 0 else value)


Floats = npt.NDArray[np.float32]


def fused(w: Floats, x: Floats, added: Floats) -> Floats:
    """w * x + added, rounded once.

    The product is exact in float64, and so is what the sum of both loses; where it loses anything,
    its last bit is made odd, after which it may be rounded once more.
    """
    product, added = w.astype(np.float64) * x, added.astype(np.float64)
    total = np.asarray(product + added)
    back = total - product
    lost = (product - (total - back)) + (added - back)
    away = np.where(lost > 0, np.inf, -np.inf)
    is_even = total.view(np.int64) % 2 == 0
    return np.where((lost != 0) & is_even, np.nextafter(total, away), total).astype(np.float32)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), st.integers(0, 40))
def test_the_fused_sum_of_these_tests_is_rounded_once(values: list[float], power: int) -> None:
    w, x, c = (np.array([value], dtype=np.float32) for value in values)
    c *= np.float32(2.0**-power)
    exact = Fraction(float(w[0])) * Fraction(float(x[0])) + Fraction(float(c[0]))
    assume(exact == 0 or abs(exact) > 2.0**-100)
    assert fused(w, x, c)[0] == rounded(exact)


def by_definition(x: Floats, w: Floats) -> Floats:
    """[rows, outputs]: the sum's definition, operation by operation; rows and lanes abreast."""
    shape = (len(x), len(w), 16)
    total: Floats | None = None
    for start in range(0, x.shape[1], 4096):
        lanes = np.zeros(shape, dtype=np.float32)
        for k in range(start, min(start + 4096, x.shape[1]), 16):
            some = slice(k, min(k + 16, start + 4096, x.shape[1]))
            count = some.stop - some.start
            lanes[..., :count] = fused(w[None, :, some], x[:, None, some], lanes[..., :count])
        total = lanes if total is None else total + lanes
    assert total is not None
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0]


@pytest.mark.parametrize(
    ("width", "count"),
    [(40, 3), (577, 1), (1029, 13), (8193, 2), (8193, 9), (577, 97), (4096, 96), (8193, 103)],
)
def test_sums_are_taken_in_the_order_that_is_written(width: int, count: int) -> None:
    rows, numbers = draw_rows("float32", 5, width, 0)
    x = torch.randn(count, width)
    weight = prepared(rows)
    got = in_every_way(lambda: linear(x, weight, backend=NATIVE))
    assert torch.equal(got, torch.tensor(by_definition(x.numpy(), numbers.numpy())))


def test_parts_side_by_side_are_the_parts_alone() -> None:
    kinds = ("q4_1", "q8_0", "float32", "q4_1", "bfloat16", "int4")
    parts = [draw_rows(kind, 3 + 5 * i, 544, i)[0] for i, kind in enumerate(kinds)]
    bias = torch.randn(sum(part.out_features for part in parts))
    for count in (1, 9, 40):
        x = torch.randn(count, 544)
        whole = in_every_way(lambda x=x: linear(x, prepared(*parts, bias=bias), backend=NATIVE))
        pieces = bias.split([part.out_features for part in parts])
        alone = [
            linear(x, prepared(part, bias=one), backend=NATIVE)
            for part, one in zip(parts, pieces, strict=True)
        ]
        assert same_bits(whole, torch.cat(alone, dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_behind_an_array_is_not_touched(kind: str) -> None:
    bias = guarded(torch.randn(6))
    for seed, width in enumerate(widths(kind)):
        rows, numbers = draw_rows(kind, 6, width, seed)
        held = attrs.evolve(
            rows,
            blocks=guarded(rows.blocks),
            scale=None if rows.scale is None else guarded(rows.scale),
        )
        for dtype in DTYPES:
            for count in (1, 3, 20):
                x = torch.randn(count, width).to(dtype)
                wanted = linear(x, prepared(rows, bias=bias), backend=NATIVE)
                x = guarded(x)
                got = in_every_way(
                    lambda x=x, h=held: linear(x, prepared(h, bias=bias), backend=NATIVE)
                )
                assert same_bits(got, wanted)
        assert torch.equal(
            in_every_way(lambda h=held: lookup_rows(prepared(h), torch.tensor([5]), torch.float32)),
            numbers[5:],
        )


def test_results_end_where_they_should() -> None:
    for kind, width in (("float32", 577), ("q4_1", 544)):
        for outputs in (1, 5, 37):
            rows, _ = draw_rows(kind, outputs, width, 0)
            for dtype in DTYPES:
                for count in (1, 7, 40):
                    x, weight = torch.randn(count, width), prepared(rows)
                    wanted = linear(x, weight, backend=NATIVE, out_dtype=dtype)

                    def call(
                        x: torch.Tensor = x,
                        weight: LinearWeight = weight,
                        wanted: torch.Tensor = wanted,
                    ) -> torch.Tensor:
                        out = guarded(torch.full_like(wanted, float("nan")))
                        linear_into(x, weight, out)
                        return out

                    assert same_bits(in_every_way(call), wanted)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_poisons_itself_only(poison: float) -> None:
    for kind, width in (("float32", 577), ("q4_1", 544), ("q6_k", 512)):
        rows, _ = draw_rows(kind, 21, width, 0)
        for count in (4, 40):
            x = torch.randn(count, width)
            wanted = linear(x, prepared(rows), backend=NATIVE)
            x[1, width // 2] = poison
            got = in_every_way(lambda x=x, r=rows: linear(x, prepared(r), backend=NATIVE))
            others = [t for t in range(count) if t != 1]
            assert same_bits(got[others], wanted[others])
            assert not got[1].isfinite().any()


def test_plain_weights_are_used_where_they_lie() -> None:
    whole = torch.randn(12, 90)
    weight, bias = whole[:, 5:80], torch.randn(12)
    made = prepare_linear(weight, bias, backend=NATIVE)
    assert made.kind == "native"
    assert made.weight.data_ptr() == weight.data_ptr()
    x = torch.randn(3, 75)
    assert_near(linear(x, made, backend=NATIVE), x, weight, bias)
    assert row_multiple([Product.of(made)], backend=NATIVE) == 1
    assert linear(x[:0], made, backend=NATIVE).shape == (0, 12)


def test_int4_weights_are_used_where_they_lie() -> None:
    rows, numbers = draw_rows("int4", 7, 104, 0)
    assert rows.scale is not None
    made = prepare_int4(rows.blocks, rows.scale, dtype=torch.bfloat16, backend=NATIVE)
    assert (made.kind, made.dtype) == ("native", torch.bfloat16)
    assert made.weight.data_ptr() == rows.blocks.data_ptr()
    x = torch.randn(3, 104).bfloat16()
    assert_near(linear(x, made, backend=NATIVE), x, numbers)


def test_a_part_that_does_not_fit_is_named() -> None:
    good, _ = draw_rows("q4_1", 4, 64, 0)
    for bad in (
        attrs.evolve(good, kind="q9_9"),
        attrs.evolve(good, in_features=96),
        attrs.evolve(good, kind="q4_0"),
        attrs.evolve(good, scale=torch.ones(4, 2)),
        attrs.evolve(good, blocks=good.blocks.T.contiguous().T),
    ):
        with pytest.raises(WeightsError, match="want"):
            prepared(bad)
    with pytest.raises(WeightsError, match="96"):
        prepared(good, draw_rows("q4_1", 4, 96, 0)[0])
    with pytest.raises(WeightsError, match="bias"):
        prepared(good, bias=torch.ones(5))
    packed, _ = draw_rows("int4", 4, 40, 0)
    with pytest.raises(WeightsError, match="group size"):
        prepared(attrs.evolve(packed, scale=torch.ones(4, 4)))
    with pytest.raises(WeightsError, match="contiguous rows"):
        prepare_linear(torch.ones(8, 4).T, backend=NATIVE)
    with pytest.raises(WeightsError, match="float64"):
        prepare_linear(torch.ones(8, 4).double(), backend=NATIVE)


def test_float_kinds_are_all_dtypes() -> None:
    assert {getattr(torch, kind) for kind in FLOAT_KINDS} == set(DTYPES)
