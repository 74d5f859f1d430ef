"""write_kv on a CPU, by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Columns, Pointer
from pilotfish.kernels.native.numbers import dtype_code, has_code, record_fields, want_indices
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_write_kv`."""

    _fields_ = record_fields(
        pointers="kv cache slots", ints="rows width row_stride dtype cache_dtype"
    )


def write_kv(kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor) -> None:
    """As the public function; rows are rounded where the cache's dtype is narrower than theirs."""
    want_fitting(kv, cache, write_slots, any_float=True)
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


def want_fitting(
    kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor, *, any_float: bool = False
) -> None:
    """Raises ValueError where rows, cache and slots do not fit; any_float: of any float dtypes."""
    is_same = kv.dtype == cache.dtype or (any_float and has_code(kv.dtype, cache.dtype))
    if kv.shape[1:] != cache.shape[2:] or not is_same:
        raise ValueError(
            f"kv is {list(kv.shape)} {kv.dtype} and the cache {list(cache.shape)} {cache.dtype}; "
            "wanted equal row shapes and dtypes: cast and reshape kv as the cache's spec says"
        )
    if write_slots.dtype != torch.int64 or write_slots.shape[0] > kv.shape[0]:
        raise ValueError(
            f"write_slots is {list(write_slots.shape)} {write_slots.dtype} for {kv.shape[0]} rows; "
            "wanted [T] int64 with T <= rows: one slot for each row to write"
        )
    if not cache.is_contiguous():
        raise ValueError(
            f"the cache has strides {cache.stride()}; wanted a contiguous [P, S, *row_shape]: "
            "pass a layer's own block, not a transposed view"
        )
