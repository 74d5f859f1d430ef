"""The sum of slices: the bits of its tree on every backend, in every way of running, and memory."""

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
from pilotfish.kernels.sum_slices import sum_slices


def by_definition(terms: list[torch.Tensor]) -> torch.Tensor:
    """The larger half first."""
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    return by_definition(terms[:middle]) + by_definition(terms[middle:])


def drawn(num_rows: int, num_slices: int, width: int, seed: int = 0) -> torch.Tensor:
    """Of many magnitudes, in memory that has more columns."""
    torch.manual_seed(seed)
    wide = torch.full((num_rows, num_slices * width + 3), float("nan"))
    scale = 10.0 ** (torch.arange(num_slices) % 5).repeat_interleave(width)
    return wide[:, 1:-2].copy_(torch.randn(num_rows, num_slices * width) * scale)


@given(
    num_rows=st.integers(0, 5),
    num_slices=st.integers(1, 17),
    width=st.sampled_from((1, 15, 33, 300)),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from((None, *DTYPES)),
    seed=st.integers(0, 99),
    backend=st.sampled_from((TORCH, NATIVE)),
)
@needs_library
def test_bits_are_those_of_the_definition(
    *,
    num_rows: int,
    num_slices: int,
    width: int,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    seed: int,
    backend: KernelBackend,
) -> None:
    terms = drawn(num_rows, num_slices, width, seed)
    bias = None if bias_dtype is None else torch.randn(width).to(bias_dtype)
    wanted = by_definition(list(torch.split(terms, width, dim=1)))
    if bias is not None:
        wanted = wanted + bias.float()
    before = terms.clone()
    got = sum_slices(terms, num_slices, bias, out_dtype=dtype, backend=backend)
    assert torch.equal(got, wanted.to(dtype))
    assert torch.equal(terms, before)


def test_torch_needs_no_library() -> None:
    terms = drawn(3, 6, 5)
    wanted = by_definition(list(torch.split(terms, 5, dim=1)))
    assert torch.equal(sum_slices(terms, 6, out_dtype=torch.float32, backend=TORCH), wanted)


def test_another_order_has_other_bits() -> None:
    terms = list(torch.split(drawn(9, 8, 16), 16, dim=1))
    assert not torch.equal(sum(terms[1:], start=terms[0]), by_definition(terms))


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 37, 1100])
def test_bits_depend_on_the_rows_terms_alone(dtype: torch.dtype, width: int) -> None:
    terms = drawn(20, 4, width)
    wanted = in_every_way(lambda: sum_slices(terms, 4, out_dtype=dtype, backend=NATIVE))
    for i, j in ((0, 1), (5, 6), (7, 10), (19, 20)):
        got = sum_slices(terms[i:j], 4, out_dtype=dtype, backend=NATIVE)
        assert same_bits(got, wanted[i:j])


@needs_library
@pytest.mark.parametrize("width", [1, 17, 300])
def test_nothing_is_read_beyond_the_terms(width: int) -> None:
    terms = guarded(drawn(2, 3, width).contiguous())
    bias = guarded(torch.randn(width))
    sum_slices(terms, 3, bias, out_dtype=torch.bfloat16, backend=NATIVE)


@pytest.mark.parametrize("backend", [TORCH, pytest.param(NATIVE, marks=needs_library)])
def test_what_does_not_fit_is_refused(backend: KernelBackend) -> None:
    terms = torch.ones(2, 12)
    with pytest.raises(ValueError, match=r"wanted \[T, 5 \* O\] float32"):
        sum_slices(terms, 5, out_dtype=torch.float32, backend=backend)
    with pytest.raises(ValueError, match="float32"):
        sum_slices(terms.double(), 4, out_dtype=torch.float32, backend=backend)
    with pytest.raises(ValueError, match=r"bias is \[4\]"):
        sum_slices(terms, 4, torch.ones(4), out_dtype=torch.float32, backend=backend)
