"""sum_slices by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import (
    address,
    address_of,
    dtype_code,
    in_rows,
    record_fields,
)
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_sum_slices`."""

    _fields_ = record_fields(
        pointers="terms bias out", ints="rows width slices row_stride out_dtype bias_dtype"
    )


def check(terms: torch.Tensor, num_slices: int, bias: torch.Tensor | None) -> None:
    """Raises as the public function."""
    is_matrix = terms.ndim == 2 and terms.dtype == torch.float32
    if not is_matrix or num_slices < 1 or terms.shape[1] % num_slices:
        raise ValueError(
            f"terms is {list(terms.shape)} {terms.dtype}; wanted [T, {num_slices} * O] float32"
        )
    width = terms.shape[1] // num_slices
    if bias is not None and (bias.shape != (width,) or not bias.is_floating_point()):
        raise ValueError(f"bias is {list(bias.shape)} {bias.dtype}; wanted [{width}] of floats")


def sum_slices(
    terms: torch.Tensor,
    num_slices: int,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """As the public function."""
    check(terms, num_slices, bias)
    terms = in_rows(terms)
    num_rows, width = terms.shape[0], terms.shape[1] // num_slices
    bias = None if bias is None else bias.contiguous()
    out = torch.empty((num_rows, width), dtype=out_dtype)
    args = Arguments(
        address_of("terms", terms, torch.float32, num_rows, terms.shape[1], apart=True),
        address(bias),
        out.data_ptr(),
        num_rows,
        width,
        num_slices,
        terms.stride(0),
        dtype_code(out_dtype),
        0 if bias is None else dtype_code(bias.dtype),
    )
    run("sum_slices", args, num_rows * terms.shape[1])
    return out


def plan_sum_slices(
    plan: Plan, terms: Buffer, num_slices: int, bias: torch.Tensor | None, out: Buffer
) -> Buffer:
    """Plans it; terms: [rows, S * O] float32, out: [rows, O] of any dtype. Returns out."""
    if bias is not None:
        bias = bias.contiguous()
        plan.keep(bias)
    plan.call(
        "sum_slices",
        Arguments,
        terms=terms,
        bias=address(bias),
        out=out,
        rows=terms.rows,
        width=out.width,
        slices=num_slices,
        row_stride=terms.width,
        out_dtype=dtype_code(out.dtype),
        bias_dtype=0 if bias is None else dtype_code(bias.dtype),
    )
    return out
