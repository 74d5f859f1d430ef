"""head_linear on a CPU, by this plugin's own native library.

Knows: its arguments' record in native.h. Does not know: threads or instruction sets.
"""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import dtype_code, record_fields
from pilotfish.kernels.native.plan import Plan
from pilotfish_kimi_k25.kernels.native import LIBRARY


class Arguments(Structure):
    """A `pf_head_linear`."""

    _fields_ = record_fields(
        pointers="x weight out",
        ints="rows heads in_features out_features row_stride head_stride dtype weight_dtype copied",
    )


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [T, N, K]; weight: [N, O, K], copied unless it is contiguous; returns a new [T, N, O]."""
    if x.stride(2) != 1:
        x = x.contiguous()
    weight = weight.contiguous()
    (num_rows, num_heads, width_k), width_o = x.shape, weight.shape[1]
    out = torch.empty((num_rows, num_heads, width_o), dtype=x.dtype)
    args = Arguments(
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        num_rows,
        num_heads,
        width_k,
        width_o,
        x.stride(0),
        x.stride(1),
        dtype_code(x.dtype),
        dtype_code(weight.dtype),
        0,
    )
    LIBRARY.run("head_linear", args, weight.numel())
    return out


def plan_head_linear(plan: Plan, x: Buffer, weight: torch.Tensor) -> Buffer:
    """Plans it for [T, N (K + W)]; returns [T, N (O + W)].

    weight: [N, O, K], copied unless it is contiguous. W: columns of every head that stand behind
    those that are multiplied; they are copied behind its outputs.
    """
    weight = weight.contiguous()
    num_heads, width_o, width_k = weight.shape
    copied = x.width // num_heads - width_k
    assert copied >= 0, (x.width, weight.shape)
    out = Buffer(x.rows, num_heads * (width_o + copied), x.dtype)
    plan.keep(weight)
    plan.call(
        LIBRARY.address("head_linear"),
        Arguments,
        x=x,
        weight=weight.data_ptr(),
        out=out,
        rows=x.rows,
        heads=num_heads,
        in_features=width_k,
        out_features=width_o,
        row_stride=x.width,
        head_stride=width_k + copied,
        dtype=dtype_code(x.dtype),
        weight_dtype=dtype_code(weight.dtype),
        copied=copied,
    )
    return out
