"""Rotary embedding on a CPU, by the native library.

Knows: the arguments' records of native.h. Does not know: where frequencies come from.
"""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import address_of, dtype_code
from pilotfish.kernels.native.plan import Plan

_COST_OF_AN_ANGLE = 16
"""Elements of simple work in the time of one sine and cosine."""


class Arguments(Structure):
    """A `pf_apply_rope`."""

    _fields_ = (
        ("x", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rows", c_int64),
        ("heads", c_int64),
        ("rotated", c_int64),
        ("row_stride", c_int64),
        ("head_stride", c_int64),
        ("dtype", c_int64),
        ("interleaved", c_int64),
    )


class AnglesArguments(Structure):
    """A `pf_rope_angles`."""

    _fields_ = (
        ("positions", c_void_p),
        ("frequencies", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rows", c_int64),
        ("pairs", c_int64),
        ("frequency_stride", c_int64),
        ("interleaved", c_int64),
        ("scale", c_double),
    )


def want_angles(rotated: int) -> None:
    """Raises ValueError where a pass has no angles: R is 0."""
    if rotated == 0:
        raise ValueError(
            "the pass has no angles to turn heads by; wanted a network with a Rotary, or layers "
            "that turn nothing (Attention(..., rope=False))"
        )


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """x: [T, N, H], mutated; cos, sin: [T, R]; returns x, as the public function."""
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, heads, width = x.shape
    row_stride, head_stride, _ = x.stride()
    rotated = cos.shape[1]
    if rotated > width or rotated % 2:
        raise ValueError(f"cos is {list(cos.shape)}; wanted [T, R], R even and at most {width}")
    args = Arguments(
        address_of("x", x, x.dtype, rows, heads, width, apart=True),
        address_of("cos", cos, torch.float32, rows, rotated),
        address_of("sin", sin, torch.float32, rows, rotated),
        rows,
        heads,
        rotated,
        row_stride,
        head_stride,
        dtype_code(x.dtype),
        interleaved,
    )
    run("apply_rope", args, rows * heads * rotated)
    return x


def plan_apply_rope(
    plan: Plan,
    x: Buffer,
    cos: Buffer,
    sin: Buffer,
    *,
    heads: int,
    head_width: int,
    interleaved: bool = False,
    first: int = 0,
) -> None:
    """Plans `apply_rope` of the heads in x's columns from `first` on; cos, sin: [rows, R]."""
    want_angles(cos.width)
    plan.call(
        "apply_rope",
        Arguments,
        x=x.columns(first),
        cos=cos,
        sin=sin,
        rows=x.rows,
        heads=heads,
        rotated=cos.width,
        row_stride=x.width,
        head_stride=head_width,
        dtype=dtype_code(x.dtype),
        interleaved=interleaved,
    )


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scale: float, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions: [T]; frequencies: [R/2] or [T, R/2]; as the public function."""
    positions, frequencies = positions.contiguous(), frequencies.contiguous()
    rows, pairs = positions.shape[0], frequencies.shape[-1]
    shape = (pairs,) if frequencies.ndim == 1 else (rows, pairs)
    cos = torch.empty((rows, 2 * pairs), dtype=torch.float32)
    sin = torch.empty_like(cos)
    args = AnglesArguments(
        address_of("positions", positions, torch.int64, rows),
        address_of("frequencies", frequencies, torch.float32, *shape, exact=True),
        cos.data_ptr(),
        sin.data_ptr(),
        rows,
        pairs,
        pairs if frequencies.ndim == 2 else 0,
        interleaved,
        scale,
    )
    run("rope_angles", args, rows * pairs * _COST_OF_AN_ANGLE)
    return cos, sin
