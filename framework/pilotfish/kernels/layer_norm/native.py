"""Layer norm on a CPU, by the native library. Knows: its arguments' record in native.h."""

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
    parameter,
    record_fields,
)
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_layer_norm`."""

    _fields_ = record_fields(
        pointers="x out residual weight bias",
        ints="rows width row_stride out_stride residual_stride dtype",
        floats="eps multiplier",
    )


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    multiplier: float = 1.0,
) -> torch.Tensor:
    """x: [T, D]; with a residual: it is updated, and the norm is the sum's."""
    x = in_rows(x)
    rows, width = x.shape
    weight, bias = parameter("weight", weight, width), parameter("bias", bias, width)
    if residual is not None:
        address_of("residual", residual, x.dtype, rows, width, exact=True, apart=True)
    out = x.new_empty(x.shape)
    args = Arguments(
        address_of("x", x, x.dtype, rows, width, apart=True),
        out.data_ptr(),
        address(residual),
        address(weight),
        address(bias),
        rows,
        width,
        x.stride(0),
        out.stride(0),
        0 if residual is None else residual.stride(0),
        dtype_code(x.dtype),
        eps,
        multiplier,
    )
    run("layer_norm", args, out.numel())
    return out


def plan_layer_norm(
    plan: Plan,
    x: Buffer,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: Buffer | None = None,
    multiplier: float = 1.0,
) -> Buffer:
    """Plans `layer_norm` of [rows, D]; returns the normed rows."""
    out = Buffer(x.rows, x.width, x.dtype)
    weight, bias = parameter("weight", weight, x.width), parameter("bias", bias, x.width)
    plan.keep(weight, bias)
    plan.call(
        "layer_norm",
        Arguments,
        x=x,
        out=out,
        residual=residual,
        weight=address(weight),
        bias=address(bias),
        rows=x.rows,
        width=x.width,
        row_stride=x.width,
        out_stride=x.width,
        residual_stride=x.width,
        dtype=dtype_code(x.dtype),
        eps=eps,
        multiplier=multiplier,
    )
    return out
