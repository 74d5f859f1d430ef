"""Functions of single numbers on a CPU, by the native library.

Knows: the arguments' records of native.h, and how a function is numbered there.
"""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import dtype_code, record_fields
from pilotfish.kernels.native.plan import Plan

FUNCTIONS = (
    "silu",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
    "softplus",
    "exp",
    "relu_squared",
    "log",
    "erf",
)
"""In the order of `ElementwiseFunction`; the last two serve the others, and tests. CLIP is next."""
CLIP = len(FUNCTIONS)

_NUMBERS = {name: number for number, name in enumerate(FUNCTIONS)}
_COST = 4
"""Elements of simple work in the time of one function."""


class Arguments(Structure):
    """A `pf_elementwise`."""

    _fields_ = record_fields(
        pointers="x out", ints="rows width row_stride dtype function", floats="limit"
    )


class SoftmaxArguments(Structure):
    """A `pf_softmax`."""

    _fields_ = record_fields(pointers="x out", ints="rows width row_stride dtype")


def apply(name: str, x: torch.Tensor) -> torch.Tensor:
    """x: any shape -> a new contiguous tensor; name: one of FUNCTIONS."""
    count = x.numel()
    if x.ndim == 2 and x.stride(1) == 1 and not x.is_contiguous():
        rows, width, row_stride = x.shape[0], x.shape[1], x.stride(0)
    else:
        x = x.contiguous()
        rows, width, row_stride = 1, count, count
    out = x.new_empty(x.shape)
    args = Arguments(
        x.data_ptr(),
        out.data_ptr(),
        rows,
        width,
        row_stride,
        dtype_code(x.dtype),
        _NUMBERS[name],
        0.0,
    )
    run("elementwise", args, _COST * count)
    return out


def plan_clip(plan: Plan, x: Buffer, limit: float) -> None:
    """Plans `x.clamp_(-limit, limit)` of [rows, D]."""
    plan.call(
        "elementwise",
        Arguments,
        x=x,
        out=x,
        rows=x.rows,
        width=x.width,
        row_stride=x.width,
        dtype=dtype_code(x.dtype),
        function=CLIP,
        limit=limit,
    )


def softmax(x: torch.Tensor) -> torch.Tensor:
    """x: [..., D] -> a new contiguous tensor."""
    width, count = x.shape[-1], x.numel()
    if not (x.ndim == 2 and x.stride(1) == 1):
        x = x.contiguous()
    out = x.new_empty(x.shape)
    args = SoftmaxArguments(
        x.data_ptr(),
        out.data_ptr(),
        count // max(width, 1),
        width,
        x.stride(0) if x.ndim == 2 else width,
        dtype_code(x.dtype),
    )
    run("softmax", args, _COST * count)
    return out
