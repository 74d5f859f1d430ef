"""Linear layers as planned calls. Knows: the records of `native.py`. Does not know: layers."""

from __future__ import annotations

import ctypes
from typing import TypeVar

from pilotfish.kernels.linear.native import Arguments, LookupArguments
from pilotfish.kernels.linear.weight import LinearWeight
from pilotfish.kernels.native.buffers import Buffer, Columns, Pointer
from pilotfish.kernels.native.numbers import address, dtype_code
from pilotfish.kernels.native.plan import Plan

Into = TypeVar("Into", bound=Buffer | Columns)


def plan_linear(plan: Plan, x: Buffer | Columns, weight: LinearWeight, out: Into) -> Into:
    """Plans `out = x @ weight.T + bias`; x: [rows, K], out: [rows, O]. Returns out."""
    rows, made = (one if isinstance(one, Buffer) else one.buffer for one in (x, out))
    if (x.width, out.width) != (weight.in_features, weight.out_features):
        raise ValueError(
            f"a product of {weight.in_features} columns and {weight.out_features} outputs was "
            f"planned from rows of {x.width} to rows of {out.width}; where the layer before it has "
            "no plan, say its width: run.sublayer(layer, x, out_width=...)"
        )
    plan.keep(weight)
    plan.call(
        "linear",
        Arguments,
        x=x,
        out=out,
        parts=ctypes.addressof(weight.native),
        bias=address(weight.bias),
        rows=rows.rows,
        in_features=weight.in_features,
        num_parts=len(weight.parts),
        x_dtype=dtype_code(rows.dtype),
        x_stride=rows.width,
        out_dtype=dtype_code(made.dtype),
        out_stride=made.width,
        bias_dtype=0 if weight.bias is None else dtype_code(weight.bias.dtype),
    )
    return out


def plan_lookup_rows(plan: Plan, tokens: Pointer, weight: LinearWeight, out: Buffer) -> Buffer:
    """Plans `lookup_rows`; weight: of one part. tokens: [rows] int64. Returns out, [rows, K]."""
    assert len(weight.parts) == 1, len(weight.parts)
    assert out.width == weight.in_features, (out.width, weight.in_features)
    plan.keep(weight)
    plan.call(
        "lookup_rows",
        LookupArguments,
        tokens=tokens,
        out=out,
        part=ctypes.addressof(weight.native),
        rows=out.rows,
        outputs=weight.out_features,
        in_features=weight.in_features,
        out_dtype=dtype_code(out.dtype),
        out_stride=out.width,
    )
    return out
