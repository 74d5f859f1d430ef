"""combine_rows on a CPU, by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import (
    address_of,
    dtype_code,
    in_rows,
    record_fields,
    want_indices,
)
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_combine_rows`."""

    _fields_ = record_fields(
        pointers="x places weights last out",
        ints="rows filled terms width row_stride last_stride dtype",
    )


def combine_rows(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None,
    num_rows: int,
) -> torch.Tensor:
    """As the public function."""
    x, places, weights = in_rows(x), places.contiguous(), weights.contiguous()
    last = None if last is None else in_rows(last)
    filled, terms = places.shape
    count, width = x.shape
    if num_rows < filled:
        raise ValueError(f"num_rows is {num_rows}; wanted {filled} or more, as places has rows")
    args = Arguments(
        address_of("x", x, x.dtype, count, width, apart=True),
        address_of("places", places, torch.int64, filled, terms),
        address_of("weights", weights, torch.float32, filled, terms, exact=True),
    )
    if last is not None:
        args.last = address_of("last", last, x.dtype, num_rows, width, apart=True)
        args.last_stride = last.stride(0)
    want_indices("places", places, count)
    out = x.new_empty((num_rows, width))
    args.out, args.rows, args.filled, args.terms = out.data_ptr(), num_rows, filled, terms
    args.width, args.row_stride, args.dtype = width, x.stride(0), dtype_code(x.dtype)
    run("combine_rows", args, num_rows * terms * width)
    return out


def plan_combine_rows(
    plan: Plan, x: Buffer, places: Buffer, weights: Buffer, last: Buffer | None
) -> Buffer:
    """Plans it for any [R, D], places and weights [T, S], last [T, D]; returns [T, D]."""
    out = Buffer(places.rows, x.width, x.dtype)
    plan.call(
        "combine_rows",
        Arguments,
        x=x,
        places=places,
        weights=weights,
        last=last,
        out=out,
        rows=places.rows,
        filled=places.rows,
        terms=places.width,
        width=x.width,
        row_stride=x.width,
        last_stride=x.width,
        dtype=dtype_code(x.dtype),
    )
    return out
