"""Rotary embedding on a CPU, by the native library.

Knows: the arguments' records of native.h. Does not know: where frequencies come from.
"""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.numbers import address_of, dtype_code, record_fields
from pilotfish.kernels.native.plan import Plan

_COST_OF_AN_ANGLE = 16
"""Elements of simple work in the time of one sine and cosine."""


class Arguments(Structure):
    """A `pf_apply_rope`."""

    _fields_ = record_fields(
        pointers="x cos sin", ints="rows heads rotated row_stride head_stride dtype interleaved"
    )


class AnglesArguments(Structure):
    """A `pf_rope_angles`."""

    _fields_ = record_fields(
        pointers="positions frequencies cos sin",
        ints="rows pairs frequency_stride interleaved",
        doubles="scale",
    )


def want_angles(rotated: int) -> None:
    """Raises ValueError where a pass has no angles: R is 0."""
    if rotated == 0:
        raise ValueError(
            "the pass has no angles to turn heads by; wanted a network with a Rotary, or layers "
            "that turn nothing (Attention(..., rope=False))"
        )


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """x: [T, N, H], mutated; cos, sin: [T, R]; returns x, as the public function."""
    want_angles(cos.shape[1])
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
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    *,
    scale: float = 1.0,
    interleaved: bool = False,
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


def plan_rope_angles(
    plan: Plan,
    positions: Pointer,
    frequencies: torch.Tensor,
    *,
    rows: Rows,
    scale: float,
    interleaved: bool,
) -> tuple[Buffer, Buffer]:
    """Plans `rope_angles` of [rows] positions; frequencies: [R/2]. Returns cos and sin."""
    pairs = frequencies.shape[0]
    cos, sin = (Buffer(rows, 2 * pairs, torch.float32) for _ in "cs")
    frequencies = frequencies.contiguous()
    plan.keep(frequencies)
    plan.call(
        "rope_angles",
        AnglesArguments,
        positions=positions,
        frequencies=address_of("frequencies", frequencies, torch.float32, pairs, exact=True),
        cos=cos,
        sin=sin,
        rows=rows,
        pairs=pairs,
        frequency_stride=0,
        interleaved=interleaved,
        scale=scale,
    )
    return cos, sin
