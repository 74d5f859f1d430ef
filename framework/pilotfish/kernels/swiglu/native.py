"""SwiGLU on a CPU, by the native library. Knows: its arguments' record in native.h."""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import address_of, dtype_code, in_rows, record_fields
from pilotfish.kernels.native.plan import Plan

_COST = 4
"""Elements of simple work in the time of one exponential and its division."""


class Arguments(Structure):
    """A `pf_swiglu`."""

    _fields_ = record_fields(pointers="gate_up out", ints="rows width row_stride dtype")


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2I]; returns [T, I], as the public function."""
    gate_up = in_rows(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    args = Arguments(
        address_of("gate_up", gate_up, gate_up.dtype, rows, 2 * width, apart=True),
        out.data_ptr(),
        rows,
        width,
        gate_up.stride(0),
        dtype_code(gate_up.dtype),
    )
    run("swiglu", args, _COST * rows * width)
    return out


def plan_swiglu(plan: Plan, gate_up: Buffer) -> Buffer:
    """Plans it for [rows, 2I]; returns [rows, I]."""
    out = Buffer(gate_up.rows, gate_up.width // 2, gate_up.dtype)
    plan.call(
        "swiglu",
        Arguments,
        gate_up=gate_up,
        out=out,
        rows=gate_up.rows,
        width=out.width,
        row_stride=gate_up.width,
        dtype=dtype_code(gate_up.dtype),
    )
    return out
