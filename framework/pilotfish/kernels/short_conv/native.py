"""Gated short convolution on a CPU, by the native library.

Knows: the arguments' records of native.h. Does not know: requests.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_void_p
from typing import Any

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.numbers import (
    address,
    address_of,
    dtype_code,
    in_rows,
    parameter,
    record_fields,
)
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.short_conv.columns import ColumnRun, ConvColumns


class Rows(Structure):
    """A `pf_short_conv_rows`."""

    _fields_ = record_fields(
        pointers="memories columns rows", ints="count first_row start memory_stride"
    )


class Pass(Structure):
    """A `pf_short_conv_pass`."""

    _fields_ = record_fields(pointers="parts", ints="num_parts filled")


class Arguments(Structure):
    """A `pf_short_conv`."""

    _fields_ = record_fields(
        pointers="bcx out weight bias pass", ints="layer num_rows size width row_stride dtype"
    )


def short_conv(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    """bcx: [T', 3D]; returns [T', D] and writes the columns, as the public function."""
    bcx, weight = in_rows(bcx), weight.contiguous()
    num_rows, (width, size) = bcx.shape[0], weight.shape
    if not 0 <= layer < len(columns.memory):
        raise ValueError(f"layer is {layer}; wanted 0 to {len(columns.memory) - 1}")
    for memory in (columns.memory, *(part.memory for part in columns.runs)):
        address_of("memory", memory[layer], bcx.dtype, 0, size, apart=True)
    bias = parameter("bias", bias, size)
    out = bcx.new_empty((num_rows, size))
    args = Arguments(
        address_of("bcx", bcx, bcx.dtype, num_rows, 3 * size, apart=True),
        out.data_ptr(),
        address_of("weight", weight, torch.float32, width, size),
        address(bias),
        pass_address(columns),
        layer,
        num_rows,
        size,
        width,
        bcx.stride(0),
        dtype_code(bcx.dtype),
    )
    run("short_conv", args, num_rows * size * (width + 2))
    return out


def plan_short_conv(
    plan: Plan,
    bcx: Buffer,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    columns: Pointer,
    layer: int,
) -> Buffer:
    """Plans it for [rows, 3D]; columns: `pass_address` of the pass. Returns [rows, D]."""
    width, size = weight.shape
    out = Buffer(bcx.rows, size, bcx.dtype)
    plan.keep(weight, bias)
    plan.call(
        "short_conv",
        Arguments,
        **{"pass": columns},
        bcx=bcx,
        out=out,
        weight=weight.data_ptr(),
        bias=address(bias),
        layer=layer,
        num_rows=bcx.rows,
        size=size,
        width=width,
        row_stride=bcx.width,
        dtype=dtype_code(bcx.dtype),
    )
    return out


def pass_address(columns: ConvColumns) -> int:
    """Of a pass's `pf_short_conv_pass`, which is made once and lives as long as `columns`."""
    made = columns.native.get("pass")
    if made is None:
        kept: list[Any] = []  # what the records point to
        parts = [_in_place(columns, kept), *(_run(run, kept) for run in columns.runs)]
        held = (Rows * len(parts))(*parts)
        filled = sum(part.count for part in parts)
        made = Pass(ctypes.addressof(held), len(parts), filled), held, kept
        columns.native["pass"] = made
    return ctypes.addressof(made[0])


def _in_place(columns: ConvColumns, kept: list[Any]) -> Rows:
    table = columns.columns.contiguous()
    rows = None if columns.rows is None else columns.rows.contiguous()
    kept += (table, rows)
    memories, stride = _memories(columns.memory, kept)
    return Rows(memories, table.data_ptr(), address(rows), table.shape[0], 0, 0, stride)


def _run(run: ColumnRun, kept: list[Any]) -> Rows:
    memories, stride = _memories(run.memory, kept)
    return Rows(memories, None, None, run.num_rows, run.first_row, run.start, stride)


def _memories(layers: tuple[torch.Tensor, ...], kept: list[Any]) -> tuple[int, int]:
    """The address of all layers' addresses, and how far rows are apart in every layer."""
    stride = layers[0].stride(0)
    assert all(layer.stride(0) == stride for layer in layers)
    addresses = (c_void_p * len(layers))(*(layer.data_ptr() for layer in layers))
    kept += (addresses, layers)
    return ctypes.addressof(addresses), stride
