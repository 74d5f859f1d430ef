"""Native combine_rows: the reference's bits, in every way of running, and memory."""

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
from pilotfish.kernels.combine_rows import combine_rows, reference

pytestmark = needs_library


@pytest.fixture(autouse=True)
def _poison() -> object:
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@given(
    num_rows=st.integers(0, 9),
    num_terms=st.integers(1, 9),
    width=st.sampled_from((1, 15, 33, 512, 700)),
    dtype=st.sampled_from(DTYPES),
    has_last=st.booleans(),
    padding=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_bits_are_the_references(
    *,
    num_rows: int,
    num_terms: int,
    width: int,
    dtype: torch.dtype,
    has_last: bool,
    padding: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    wide = torch.full((num_rows * num_terms + 2, width + 3), float("nan"), dtype=dtype)
    x = wide[:, 2 : 2 + width].copy_(torch.randn(wide.shape[0], width))
    places = torch.randint(x.shape[0], (num_rows, num_terms))
    weights = torch.rand(num_rows, num_terms)
    padded = num_rows + padding
    last = torch.randn(padded, width).to(dtype) if has_last else None
    got = combine_rows(x, places, weights, last, num_rows=padded, backend=NATIVE)
    wanted = reference.combine_rows(x, places, weights, last, padded)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 37, 1100])
def test_bits_depend_on_the_rows_terms_alone(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    x, last = torch.randn(60, width).to(dtype), torch.randn(20, width).to(dtype)
    places, weights = torch.randint(60, (20, 3)), torch.rand(20, 3)
    wanted = in_every_way(lambda: combine_rows(x, places, weights, last, backend=NATIVE))
    for i, j in ((0, 1), (5, 6), (7, 10), (19, 20)):
        got = combine_rows(x, places[i:j], weights[i:j], last[i:j], backend=NATIVE)
        assert same_bits(got, wanted[i:j])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 80])
def test_memory_beyond_a_row_is_left_alone_and_rows_of_no_term_may_be_nan(
    dtype: torch.dtype, width: int
) -> None:
    x, last = torch.randn(5, width).to(dtype), torch.randn(2, width).to(dtype)
    x[1] = float("nan")
    places, weights = torch.tensor([[0, 4], [4, 3]]), torch.rand(2, 2)
    wanted = combine_rows(x, places, weights, last, backend=NATIVE)
    beside = guarded(x), guarded(places), guarded(weights), guarded(last)
    assert torch.equal(combine_rows(*beside, backend=NATIVE), wanted)
    assert not wanted.isnan().any()
