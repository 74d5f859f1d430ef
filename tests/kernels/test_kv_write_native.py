"""Native write_kv and write_context_kv: bits copied or rounded once, and no other slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
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
from kernels.test_context_kv_write import EPS, Case, cases, layer_by_layer
from pilotfish.kernels.context_kv_write import reference, write_context_kv
from pilotfish.kernels.kv_write import write_kv

pytestmark = needs_library


@given(
    num_rows=st.integers(0, 9),
    padding=st.integers(0, 3),
    row_shape=st.sampled_from(((2, 1, 1), (2, 3, 64), (576,), (2, 2, 17), (5,))),
    page_size=st.sampled_from((1, 3, 16)),
    dtype=st.sampled_from(DTYPES),
    pages=st.sampled_from(DTYPES),
)
def test_rows_reach_their_slots_and_no_other(
    *,
    num_rows: int,
    padding: int,
    row_shape: tuple[int, ...],
    page_size: int,
    dtype: torch.dtype,
    pages: torch.dtype,
) -> None:
    num_pages = num_rows // page_size + 2
    kv = torch.randn(num_rows + padding, *row_shape).to(dtype)
    kv[num_rows:] = torch.nan
    slots = torch.randperm(num_pages * page_size)[:num_rows]
    before = torch.full((num_pages, page_size, *row_shape), torch.nan, dtype=pages)

    def written() -> torch.Tensor:
        cache = before.clone()
        write_kv(kv, cache, slots, backend=NATIVE)
        return cache

    wanted = before.clone()
    wanted.flatten(0, 1)[slots] = kv[:num_rows].to(pages)
    assert same_bits(in_every_way(written), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_is_copied(dtype: torch.dtype) -> None:
    """NaN with a payload, -0, and numbers below the normal ones among them."""
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    bits = torch.randint(-(2**31), 2**31, (40, 2, 3, 5)).to(kind)
    kv, cache = bits.view(dtype), torch.zeros(10, 4, 2, 3, 5, dtype=dtype)
    slots = torch.randperm(40)
    write_kv(kv, cache, slots, backend=NATIVE)
    assert torch.equal(cache.view(kind).flatten(0, 1)[slots], bits)


def test_rows_that_lie_apart_and_memory_beyond_them() -> None:
    packed = torch.randn(5, 100)
    kv = packed[:, 36:100].view(5, 2, 2, 16)
    slots = torch.tensor([7, 0, 3, 4, 6])
    for dtype in DTYPES:
        cache = guarded(torch.zeros(2, 4, 2, 2, 16, dtype=dtype))
        write_kv(kv, cache, slots, backend=NATIVE)
        assert torch.equal(cache.flatten(0, 1)[slots], kv.to(dtype))
        odd, narrow = (
            guarded(torch.randn(3, 2, 1, 9)),
            guarded(torch.zeros(3, 1, 2, 1, 9).to(dtype)),
        )
        write_kv(odd, narrow, torch.tensor([2, 1, 0]), backend=NATIVE)
        assert torch.equal(narrow[:, 0].flip(0), odd.to(dtype))
    with pytest.raises(ValueError, match="equal row shapes"):
        write_kv(kv, torch.zeros(2, 4, 2, 2, 16, dtype=torch.int32), slots, backend=NATIVE)


def context(case: Case, pages: torch.dtype | None = None) -> list[torch.Tensor]:
    """The caches that write_context_kv fills, all of it in memory that ends where it ends."""
    kv, gain, cos, sin, slots = (guarded(part) if part.numel() else part for part in case.tensors())
    caches = [guarded(cache) for cache in case.caches(pages)]
    write_context_kv(kv, gain, (cos, sin), caches, slots, eps=EPS, backend=NATIVE)
    return caches


@settings(max_examples=40)
@given(case=cases())
def test_context_rows_are_those_of_an_attention_layer(case: Case) -> None:
    wanted = layer_by_layer(case, NATIVE)
    found = in_every_way(lambda: torch.stack(context(case)))
    assert same_bits(found, torch.stack(wanted))


@settings(max_examples=40)
@given(case=cases())
def test_context_rows_are_as_near_the_definition_as_eager_torchs(case: Case) -> None:
    """Seven roundings of half an eps (mean, root, norm, gain, two products, their sum) of numbers
    that a rotation may make smaller by the root of two are 5 eps of the largest, where eager's own
    happen to cancel.
    """
    kv, gain, cos, sin, slots = case.tensors()
    exact = case.caches(torch.float64)
    wide = (part.double() for part in (kv, gain, cos, sin))
    w_kv, w_gain, w_cos, w_sin = wide
    reference.write_context_kv(w_kv, w_gain, (w_cos, w_sin), exact, slots, eps=EPS)
    eager = layer_by_layer(case, TORCH)
    for mine, theirs, right in zip(context(case), eager, exact, strict=True):
        rows = [part.flatten(0, 1)[slots].double() for part in (mine, theirs, right)]
        if not len(slots):
            continue
        rounding = 5 * torch.finfo(case.dtype).eps * rows[2].abs().max()
        limit = max(2 * (rows[1] - rows[2]).abs().max(), rounding)
        assert (rows[0] - rows[2]).abs().max() <= limit


@settings(max_examples=20)
@given(case=cases(), pages=st.sampled_from((torch.bfloat16, torch.float16)))
def test_context_rows_are_rounded_to_narrower_pages(case: Case, pages: torch.dtype) -> None:
    for narrow, wide in zip(context(case, pages), context(case), strict=True):
        assert same_bits(narrow, wide.to(pages))
