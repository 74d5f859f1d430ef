"""RMS norm on a CPU, by the native library.

Knows: the arguments' records of native.h. Does not know: how a row is computed.
"""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer, Columns
from pilotfish.kernels.native.numbers import address, address_of, dtype_code, in_rows, record_fields
from pilotfish.kernels.native.plan import Plan

BEFORE_WEIGHT, AFTER_WEIGHT = "before_weight", "after_weight"


class Arguments(Structure):
    """A `pf_rms_norm`."""

    _fields_ = record_fields(
        pointers="x out residual weight",
        ints=(
            "rows heads width row_stride head_stride out_row_stride out_head_stride"
            " residual_stride weight_stride dtype weight_dtype cast_before_weight"
        ),
        floats="eps multiplier",
    )


class AddArguments(Structure):
    """A `pf_add_scaled`."""

    _fields_ = record_fields(
        pointers="x residual out",
        ints="rows width row_stride residual_stride out_stride dtype",
        doubles="multiplier",
    )


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cast: str,
    *,
    residual: torch.Tensor | None = None,
    multiplier: float = 1.0,
    of_heads: bool = False,
) -> torch.Tensor:
    """x: [T, D] or [T, N, D]; with a residual: [T, D], updated, and the norm is the sum's.

    of_heads: x is [T, N, D] and written in place, weight is [N, D].
    """
    if x.ndim not in (2, 3):
        raise ValueError(f"x is {list(x.shape)}; wanted [T, D] or [T, N, D]")
    x = in_rows(x)
    out = x if of_heads else x.new_empty(x.shape)
    rows, *heads, width = x.shape
    gains = (*heads, width) if of_heads else (width,)
    weight, code, weight_code = _weight_as(weight, x.dtype, *gains)
    if residual is not None:
        address_of("residual", residual, x.dtype, rows, width, exact=True, apart=True)
    row_stride, *head_stride, _ = x.stride()
    out_row_stride, *out_head_stride, _ = out.stride()
    args = Arguments(
        x.data_ptr(),
        out.data_ptr(),
        address(residual),
        address(weight),
        rows,
        heads[0] if heads else 1,
        width,
        row_stride,
        head_stride[0] if heads else 0,
        out_row_stride,
        out_head_stride[0] if heads else 0,
        0 if residual is None else residual.stride(0),
        weight.stride(0) if of_heads and weight is not None else 0,
        code,
        weight_code,
        cast != AFTER_WEIGHT,
        eps,
        multiplier,
    )
    run("rms_norm", args, out.numel())
    return out


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    cast: str,
    multiplier: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the public function."""
    return rms_norm(x, weight, eps, cast, residual=residual, multiplier=multiplier), residual


def plan_rms_norm(
    plan: Plan,
    x: Buffer | Columns,
    weight: torch.Tensor | None,
    eps: float,
    cast: str,
    *,
    residual: Buffer | None = None,
    multiplier: float = 1.0,
    into: Columns | None = None,
    heads: int | None = None,
) -> Buffer:
    """Plans `rms_norm` of all D columns of x.

    heads: N heads lie in the columns, each is normed by itself, and weight is [N, D / N].
    Returns a new [rows, D], or the buffer into whose columns the normed rows go.
    """
    x = x.columns() if isinstance(x, Buffer) else x
    rows, dtype = x.buffer.rows, x.buffer.dtype
    into = into or Buffer(rows, x.width, dtype).columns()
    assert into.width == x.width, (into.width, x.width)
    gains = (x.width,) if heads is None else (heads, x.width // heads)
    head_stride = 0 if heads is None else gains[-1]
    weight, code, weight_code = _weight_as(weight, dtype, *gains)
    plan.keep(weight)
    plan.call(
        "rms_norm",
        Arguments,
        x=x,
        out=into,
        residual=residual,
        weight=address(weight),
        rows=rows,
        heads=heads or 1,
        width=gains[-1],
        row_stride=x.buffer.width,
        head_stride=head_stride,
        out_row_stride=into.buffer.width,
        out_head_stride=head_stride,
        residual_stride=0 if residual is None else residual.width,
        weight_stride=0 if heads is None or weight is None else weight.stride(0),
        dtype=code,
        weight_dtype=weight_code,
        cast_before_weight=cast != AFTER_WEIGHT,
        eps=eps,
        multiplier=multiplier,
    )
    return into.buffer


def plan_norm_heads(plan: Plan, x: Buffer, weight: torch.Tensor, eps: float) -> None:
    """Plans `norm_heads` of the heads in x's first columns; weight: [N, H]."""
    assert weight.numel() <= x.width, (weight.shape, x.width)
    columns = x.columns(0, weight.numel())
    plan_rms_norm(plan, columns, weight, eps, BEFORE_WEIGHT, into=columns, heads=len(weight))


def norm_heads(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [T, N, H], normed in place; weight: [N, H], a row for each head; as the public one."""
    address_of("x", x, x.dtype, *x.shape, apart=True)
    return rms_norm(x, weight, eps, BEFORE_WEIGHT, of_heads=True)


def add_scaled(
    residual: torch.Tensor,
    x: torch.Tensor,
    multiplier: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual, x: [T, D] of one dtype; returns residual + multiplier * x, rounded once."""
    x, old = in_rows(x), in_rows(residual)
    (rows, width), dtype = x.shape, x.dtype
    if out is None:
        out = x.new_empty(x.shape)
    args = AddArguments(
        address_of("x", x, dtype, rows, width, apart=True),
        address_of("residual", old, dtype, rows, width, exact=True, apart=True),
        address_of("out", out, dtype, rows, width, exact=True, apart=True),
        rows,
        width,
        x.stride(0),
        old.stride(0),
        out.stride(0),
        dtype_code(x.dtype),
        multiplier,
    )
    run("add_scaled", args, x.numel())
    return out


def plan_add_scaled(
    plan: Plan, residual: Buffer, x: Buffer, multiplier: float, out: Buffer | None = None
) -> Buffer:
    """Plans out = residual + multiplier * x, all [rows, D]; out: None for residual itself."""
    out = out or residual
    plan.call(
        "add_scaled",
        AddArguments,
        x=x,
        residual=residual,
        out=out,
        rows=x.rows,
        width=x.width,
        row_stride=x.width,
        residual_stride=x.width,
        out_stride=x.width,
        dtype=dtype_code(x.dtype),
        multiplier=multiplier,
    )
    return out


def _weight_as(
    weight: torch.Tensor | None, dtype: torch.dtype, *shape: int
) -> tuple[torch.Tensor | None, int, int]:
    """The weight as the kernel reads it beside rows of `dtype`, and both codes.

    Raises ValueError where it has another shape.
    """
    code = dtype_code(dtype)
    if weight is None:
        return None, code, code
    weight = in_rows(weight if weight.dtype == dtype else weight.float())
    address_of("weight", weight, weight.dtype, *shape, exact=True, apart=True)
    return weight, code, dtype_code(weight.dtype)
