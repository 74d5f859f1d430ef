"""Grouped linear on a CPU, by the native library: one call for all groups that have rows.

Knows: its arguments' record in native.h. Does not know: who sorted the rows.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p

import torch

from pilotfish.kernels.grouped_linear.groups import RowGroups
from pilotfish.kernels.grouped_linear.weight import GroupedWeight
from pilotfish.kernels.native import run
from pilotfish.kernels.native.numbers import dtype_code


class Arguments(Structure):
    """A `pf_grouped_linear`."""

    _fields_ = (
        ("x", c_void_p),
        ("out", c_void_p),
        ("parts", c_void_p),
        ("rows", c_void_p),
        ("spans", c_void_p),
        ("num_spans", c_int64),
        ("x_rows", c_int64),
        ("in_features", c_int64),
        ("x_dtype", c_int64),
        ("x_stride", c_int64),
        ("out_dtype", c_int64),
        ("out_stride", c_int64),
    )


def grouped_linear(
    x: torch.Tensor, weight: GroupedWeight, groups: RowGroups, *, gather: bool
) -> torch.Tensor:
    """x: [R, K], or [T, K] to gather from; returns a new [R, O], as the public function."""
    num_rows = groups.rows.shape[0]
    assert gather or x.shape[0] == num_rows, (x.shape, num_rows)
    assert x.shape[1] == weight.in_features, (x.shape, weight.in_features)
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((num_rows, weight.out_features), dtype=x.dtype)
    flat = [number for span in groups.spans for number in span]
    spans = (c_int64 * len(flat))(*flat)
    run(
        "grouped_linear",
        Arguments(
            x.data_ptr(),
            out.data_ptr(),
            ctypes.addressof(weight.native),
            groups.rows.data_ptr() if gather else None,
            ctypes.addressof(spans),
            len(groups.spans),
            x.shape[0],
            weight.in_features,
            dtype_code(x.dtype),
            x.stride(0),
            dtype_code(out.dtype),
            out.stride(0),
        ),
        len(groups.spans) * weight.in_features * weight.out_features,
    )
    return out
