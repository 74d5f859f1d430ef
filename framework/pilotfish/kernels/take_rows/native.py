"""take_rows by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.numbers import address_of, record_fields, want_indices
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_take_rows`."""

    _fields_ = record_fields(pointers="x index out", ints="rows row_bytes")


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """As the public function."""
    x, index = x.contiguous(), index.contiguous()
    (num_rows, width), num_taken = x.shape, index.numel()
    args = Arguments(
        address_of("x", x, x.dtype, num_rows, width),
        address_of("index", index, torch.int64, num_taken),
    )
    want_indices("index", index, num_rows)
    out = torch.empty((num_taken, width), dtype=x.dtype)
    args.out, args.rows, args.row_bytes = out.data_ptr(), num_taken, width * x.itemsize
    run("take_rows", args, out.numel())
    return out


def plan_take_rows(plan: Plan, x: Buffer, index: Pointer, rows: Rows) -> Buffer:
    """Plans it; index: [rows] int64 of the pass."""
    out = Buffer(rows, x.width, x.dtype)
    plan.call("take_rows", Arguments, x=x, index=index, out=out, rows=rows, row_bytes=x.row_bytes)
    return out
