"""Linear layers on a CPU, by the native library, on weights that stay as the file has them.

Knows: kinds of rows and the arguments' records in native.h. Does not know: files.
Letters: T rows, K input width, O output width, C groups of columns that share a scale.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure

import torch

from pilotfish.errors import WeightsError
from pilotfish.kernels.int4 import COLUMNS_PER_WORD
from pilotfish.kernels.linear.weight import LinearWeight, PackedRows
from pilotfish.kernels.native import run
from pilotfish.kernels.native.numbers import address, address_of, dtype_code, in_rows, record_fields

FLOAT_KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

KINDS = {
    "float32": (0, 1, 4),
    "bfloat16": (1, 1, 2),
    "float16": (2, 1, 2),
    "q4_0": (3, 32, 18),
    "q4_1": (4, 32, 20),
    "q5_0": (5, 32, 22),
    "q5_1": (6, 32, 24),
    "q8_0": (7, 32, 34),
    "q4_k": (8, 256, 144),
    "q5_k": (9, 256, 176),
    "q6_k": (10, 256, 210),
    "int4": (11, COLUMNS_PER_WORD, 4),
}
"""Kind -> its number in native code, the columns of a block, the bytes of a block."""


AHEAD, ROWS_AHEAD = 8192, 4
"""How far ahead of its use memory is asked for: in bytes, of whole rows; in rows where only columns
of them are read, a slice's for one."""


class Part(Structure):
    """A `pf_weight_part`."""

    _fields_ = record_fields(
        pointers="data scale", ints="kind outputs row_bytes ahead scale_dtype group_size"
    )


class Arguments(Structure):
    """A `pf_linear`."""

    _fields_ = record_fields(
        pointers="x out parts bias",
        ints="rows in_features slices num_parts x_dtype x_stride out_dtype out_stride bias_dtype",
    )


class LookupArguments(Structure):
    """A `pf_lookup_rows`."""

    _fields_ = record_fields(
        pointers="tokens out part", ints="rows outputs in_features out_dtype out_stride"
    )


def prepare(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
    """weight: [O, K] float, columns contiguous, shared as it is; bias: [O] or None."""
    plain = LinearWeight.from_plain(weight, bias, kind="native")
    kind = FLOAT_KINDS.get(weight.dtype)
    if kind is None or (weight.shape[1] > 1 and weight.stride(1) != 1):
        raise WeightsError(
            f"a linear weight is {weight.dtype} with strides {weight.stride()}; wanted float32, "
            "bfloat16 or float16 with contiguous rows; convert it before it is prepared"
        )
    return _prepared((PackedRows(weight, kind, plain.in_features),), bias, weight.dtype)


def prepare_blocks(
    parts: Sequence[PackedRows], bias: torch.Tensor | None, dtype: torch.dtype
) -> LinearWeight:
    """parts: one after the other the O outputs, each as it lies in its file; bias: [O] or None."""
    parts = tuple(parts)
    width = parts[0].in_features if parts else 0
    for part in parts:
        _check(part, width)
    num_outputs = sum(part.out_features for part in parts)
    if bias is not None and (bias.shape != (num_outputs,) or bias.dtype not in FLOAT_KINDS):
        raise WeightsError(
            f"a linear bias is {list(bias.shape)} {bias.dtype}; wanted [{num_outputs}] of a "
            "floating type; check the name map that loaded it"
        )
    return _prepared(parts, bias, dtype)


def prepare_int4(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> LinearWeight:
    """packed: [O, K/8] int32, as `kernels.int4` says; scale: [O, C]; both are kept as they lie."""
    rows = PackedRows(packed, "int4", packed.shape[-1] * COLUMNS_PER_WORD, scale)
    return prepare_blocks((rows,), None, dtype)


def part_of(rows: PackedRows) -> Part:
    """The record that native code reads; what it points to must be kept by the caller."""
    scale = rows.scale
    row_bytes = rows.blocks.stride(0) * rows.blocks.element_size()
    return Part(
        rows.blocks.data_ptr(),
        address(scale),
        KINDS[rows.kind][0],
        rows.out_features,
        row_bytes,
        AHEAD if rows.blocks.is_contiguous() else ROWS_AHEAD * row_bytes,
        0 if scale is None else dtype_code(scale.dtype),
        0 if scale is None else rows.in_features // scale.shape[-1],
    )


def _check(rows: PackedRows, width: int) -> None:
    if rows.kind not in KINDS:
        raise WeightsError(f"a linear weight is of kind {rows.kind!r}; wanted one of {list(KINDS)}")
    _, columns, num_bytes = KINDS[rows.kind]
    blocks = rows.blocks
    row_bytes = blocks.shape[-1] * blocks.element_size()
    fits = blocks.dim() == 2 and row_bytes == rows.in_features // columns * num_bytes
    if not fits or rows.in_features % columns or rows.in_features != width:
        raise WeightsError(
            f"a linear weight of kind {rows.kind} is {list(blocks.shape)} {blocks.dtype} for "
            f"{rows.in_features} columns beside parts of {width}; wanted one width, a multiple of "
            f"{columns}, and [O, bytes] with {num_bytes} bytes for each {columns} columns; check "
            "the rules that loaded it"
        )
    if blocks.shape[1] > 1 and blocks.stride(1) != 1:
        raise WeightsError(
            f"a linear weight of kind {rows.kind} has strides {blocks.stride()}; wanted contiguous "
            "rows; make it contiguous before it is prepared"
        )
    scale = rows.scale
    if (scale is None) != (rows.kind != "int4"):
        raise WeightsError(f"a linear weight of kind {rows.kind} wants a scale if it is int4 only")
    if scale is None:
        return
    groups = scale.shape[-1]
    if (
        blocks.dtype != torch.int32
        or scale.shape != (blocks.shape[0], groups)
        or scale.dtype not in FLOAT_KINDS
        or not scale.is_contiguous()
        or not blocks.is_contiguous()
    ):
        raise WeightsError(
            f"an INT4 weight is {list(blocks.shape)} {blocks.dtype} with scales "
            f"{list(scale.shape)} {scale.dtype}; wanted [O, K/8] int32 with [O, groups] float, "
            "both contiguous; check the rules that loaded it"
        )
    if width % groups or width // groups % COLUMNS_PER_WORD:
        raise WeightsError(
            f"an INT4 weight of {width} columns has {groups} scales a row; wanted groups of a "
            f"multiple of {COLUMNS_PER_WORD} columns; check the group size"
        )


def _prepared(
    parts: tuple[PackedRows, ...], bias: torch.Tensor | None, dtype: torch.dtype
) -> LinearWeight:
    return LinearWeight(
        weight=parts[0].blocks,
        bias=None if bias is None else bias.contiguous(),
        kind="native",
        in_features=parts[0].in_features,
        out_features=sum(part.out_features for part in parts),
        dtype=dtype,
        parts=parts,
        native=(Part * len(parts))(*(part_of(part) for part in parts)),
    )


def linear(
    x: torch.Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x: [T, K] float; returns a new [T, O] of out_dtype, or of x's dtype."""
    x = in_rows(x)
    out = torch.empty((x.shape[0], weight.out_features), dtype=out_dtype or x.dtype)
    linear_into(x, weight, out)
    return out


def linear_into(x: torch.Tensor, weight: LinearWeight, out: torch.Tensor) -> None:
    """x: [T, K], out: [T, O], columns of both contiguous."""
    bias, num_rows = weight.bias, x.shape[0]
    run(
        "linear",
        Arguments(
            address_of("x", x, x.dtype, num_rows, weight.in_features, apart=True),
            address_of("out", out, out.dtype, num_rows, weight.out_features, apart=True),
            ctypes.addressof(weight.native),
            address(bias),
            num_rows,
            weight.in_features,
            1,
            len(weight.parts),
            dtype_code(x.dtype),
            x.stride(0),
            dtype_code(out.dtype),
            out.stride(0),
            0 if bias is None else dtype_code(bias.dtype),
        ),
        weight.in_features * weight.out_features,
    )


def lookup_rows(weight: LinearWeight, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of a native weight: those of an embedding that shares a head's memory.

    weight: of one part. tokens: [T] int64. Returns a new [T, K], each number rounded to dtype once;
    rows that the weight has not are NaN.
    """
    assert len(weight.parts) == 1, len(weight.parts)
    tokens = tokens.contiguous()
    num_rows = tokens.numel()
    out = torch.empty((num_rows, weight.in_features), dtype=dtype)
    run(
        "lookup_rows",
        LookupArguments(
            address_of("tokens", tokens, torch.int64, num_rows),
            out.data_ptr(),
            ctypes.addressof(weight.native),
            num_rows,
            weight.out_features,
            weight.in_features,
            dtype_code(dtype),
            weight.in_features,
        ),
        out.numel(),
    )
    return out
