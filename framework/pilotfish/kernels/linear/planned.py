"""Linear layers as planned calls. Knows: the records of `native.py`. Does not know: layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TypeVar

from pilotfish.kernels.linear.native import Arguments, LookupArguments, Part
from pilotfish.kernels.linear.weight import LinearWeight
from pilotfish.kernels.native.buffers import Buffer, Columns, Pointer
from pilotfish.kernels.native.numbers import address, dtype_code
from pilotfish.kernels.native.plan import Plan

Into = TypeVar("Into", bound=Buffer | Columns)


def plan_linear(plan: Plan, x: Buffer | Columns, weight: LinearWeight, out: Into) -> Into:
    """Plans `out = x @ weight.T + bias`; x: [rows, K], out: [rows, O]. Returns out."""
    return plan_slices(plan, x, (weight,), out)


def plan_slices(plan: Plan, x: Buffer | Columns, slices: Sequence[LinearWeight], out: Into) -> Into:
    """Plans a product of each of S runs of x's columns, in one call. Returns out.

    x: [rows, S * K]. slices: S weights of one shape and of the same parts, [O, K]; with a bias: one
    alone. out: [rows, S * O], the products one after the other.
    """
    rows, made = (one if isinstance(one, Buffer) else one.buffer for one in (x, out))
    weight, count = slices[0], len(slices)
    columns, outputs = count * weight.in_features, count * weight.out_features
    if (x.width, out.width) != (columns, outputs):
        raise ValueError(
            f"a product of {columns} columns and {outputs} outputs was "
            f"planned from rows of {x.width} to rows of {out.width}; where the layer before it has "
            "no plan, say its width: run.sublayer(layer, x, out_width=...)"
        )
    assert count == 1 or all(one.bias is None for one in slices)
    parts = [part for one in slices for part in one.native]
    shapes = {tuple(part.out_features for part in one.parts) for one in slices}
    assert len(shapes) == 1, f"slices have parts of {shapes} outputs; wanted the same of each"
    records = (Part * len(parts))(*parts)
    plan.keep(*slices, records)
    plan.call(
        "linear",
        Arguments,
        x=x,
        out=out,
        parts=ctypes.addressof(records),
        bias=address(weight.bias),
        rows=rows.rows,
        in_features=weight.in_features,
        slices=count,
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
