"""write_kv on a CPU, by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Columns, Pointer
from pilotfish.kernels.native.numbers import dtype_code, want_indices
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_write_kv`."""

    _fields_ = (
        ("kv", c_void_p),
        ("cache", c_void_p),
        ("slots", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("row_stride", c_int64),
        ("dtype", c_int64),
        ("cache_dtype", c_int64),
    )


def write_kv(kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor) -> None:
    """As the public function; rows are rounded where the cache's dtype is narrower than theirs."""
    count = write_slots.shape[0]
    if count == 0:
        return
    want_indices("write_slots", write_slots, cache.shape[0] * cache.shape[1])
    if not kv[0].is_contiguous():
        kv = kv.contiguous()
    slots = write_slots.contiguous()
    width = kv[0].numel()
    args = Arguments(
        kv.data_ptr(),
        cache.data_ptr(),
        slots.data_ptr(),
        count,
        width,
        kv.stride(0),
        dtype_code(kv.dtype),
        dtype_code(cache.dtype),
    )
    run("write_kv", args, count * width)


def plan_write_kv(
    plan: Plan,
    kv: Columns,
    cache: Pointer,
    slots: Pointer,
    *,
    width: int,
    cache_dtype: torch.dtype,
) -> None:
    """Plans it; kv: the first column of [rows, width] in a buffer; slots: [rows] int64."""
    buffer = kv.buffer
    plan.call(
        "write_kv",
        Arguments,
        kv=kv,
        cache=cache,
        slots=slots,
        rows=buffer.rows,
        width=width,
        row_stride=buffer.width,
        dtype=dtype_code(buffer.dtype),
        cache_dtype=dtype_code(cache_dtype),
    )
