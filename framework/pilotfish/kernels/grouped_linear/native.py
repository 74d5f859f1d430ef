"""Grouped linear on a CPU, by the native library: one call for all groups that have rows.

Knows: the records in native.h and groups.h. Does not know: who sorted the rows.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64

import attrs
import torch

from pilotfish.kernels.grouped_linear.groups import RowGroups
from pilotfish.kernels.grouped_linear.weight import GroupedWeight
from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import address_of, dtype_code, in_rows, record_fields
from pilotfish.kernels.native.plan import Plan


class Arguments(Structure):
    """A `pf_grouped_linear`."""

    _fields_ = record_fields(
        pointers="x out parts rows spans",
        ints="x_rows in_features x_dtype x_stride out_dtype out_stride",
    )


def grouped_linear(
    x: torch.Tensor, weight: GroupedWeight, groups: RowGroups, *, gather: bool
) -> torch.Tensor:
    """x: [R, K], or [T, K] to gather from; returns a new [R, O], as the public function."""
    num_rows = groups.rows.shape[0]
    x = in_rows(x)
    wanted_rows = groups.places.shape[0] if gather else num_rows
    used = [group for group, _, _ in groups.spans]  # ascending
    if used and not 0 <= used[0] <= used[-1] < weight.num_groups:
        raise ValueError(
            f"rows go to groups {used[0]} to {used[-1]}; wanted 0 to {weight.num_groups - 1}, "
            "groups that the weight has"
        )
    out = torch.empty((num_rows, weight.out_features), dtype=x.dtype)
    flat = [len(groups.spans), *(number for span in groups.spans for number in span)]
    spans = (c_int64 * len(flat))(*flat)
    run(
        "grouped_linear",
        Arguments(
            address_of("x", x, x.dtype, wanted_rows, weight.in_features, apart=True),
            out.data_ptr(),
            ctypes.addressof(weight.native),
            groups.rows.data_ptr() if gather else None,
            ctypes.addressof(spans),
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


@attrs.frozen(kw_only=True, eq=False)
class PlannedGroups:
    """What RowGroups are of a pass, in memory that native calls fill and read.

    rows, places: [T, S] int64 each, rows being the T S sorted ones. spans: [1 + 3 E] int64, how
    many groups have rows, then each of them as in RowGroups; the same memory in every pass.
    """

    rows: Buffer
    places: Buffer
    spans: torch.Tensor

    @classmethod
    def of(cls, choice: Buffer, num_groups: int) -> PlannedGroups:
        """For a choice [T, S] of E groups."""
        return cls(
            rows=Buffer(choice.rows, choice.width, torch.int64),
            places=Buffer(choice.rows, choice.width, torch.int64),
            spans=torch.zeros(1 + 3 * num_groups, dtype=torch.int64),
        )


def plan_grouped_linear(
    plan: Plan, x: Buffer, weight: GroupedWeight, groups: PlannedGroups, *, gather: bool
) -> Buffer:
    """Plans it for [T, K] rows to gather from, or [T S, K] sorted ones; returns [T S, O]."""
    num_rows = groups.rows.rows.times(groups.rows.width)
    assert x.rows is (groups.rows.rows if gather else num_rows), x.rows
    assert x.width == weight.in_features, (x.width, weight.in_features)
    out = Buffer(num_rows, weight.out_features, x.dtype)
    plan.keep(weight, groups.spans)
    plan.call(
        "grouped_linear",
        Arguments,
        x=x,
        out=out,
        parts=ctypes.addressof(weight.native),
        rows=groups.rows if gather else None,
        spans=groups.spans.data_ptr(),
        x_rows=x.rows,
        in_features=weight.in_features,
        x_dtype=dtype_code(x.dtype),
        x_stride=x.width,
        out_dtype=dtype_code(out.dtype),
        out_stride=out.width,
    )
    return out
