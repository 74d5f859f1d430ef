"""take_rows by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.plan import Buffer, Plan, Pointer, Rows


class Arguments(Structure):
    """A `pf_take_rows`."""

    _fields_ = (
        ("x", c_void_p),
        ("index", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
        ("row_bytes", c_int64),
    )


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """As the public function."""
    out = torch.empty((index.shape[0], x.shape[1]), dtype=x.dtype)
    row_bytes = x.shape[1] * x.itemsize
    args = Arguments(x.data_ptr(), index.data_ptr(), out.data_ptr(), out.shape[0], row_bytes)
    run("take_rows", args, out.numel())
    return out


def plan_take_rows(plan: Plan, x: Buffer, index: Pointer, rows: Rows) -> Buffer:
    """Plans it; index: [rows] int64 of the pass."""
    out = Buffer(rows, x.width, x.dtype)
    plan.call("take_rows", Arguments, x=x, index=index, out=out, rows=rows, row_bytes=x.row_bytes)
    return out
