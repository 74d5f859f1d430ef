"""Gated short convolution in Triton: a program takes a piece of one row.

Knows: the kernel and its launch. Does not know: when it is chosen.
A column of a row of the same pass is computed again from b and x instead of read: its writer may
not have run yet.
"""

import torch
import triton
import triton.language as tl

from pilotfish.kernels.short_conv.columns import ConvColumns

BLOCK_COLUMNS = 512


@triton.jit(do_not_specialize=["first_row", "start"])  # type: ignore[untyped-decorator]
def _short_conv_kernel(  # noqa: PLR0917
    p_bcx: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_memory: tl.tensor,
    p_columns: tl.tensor,
    p_places: tl.tensor,
    p_rows: tl.tensor,
    p_out: tl.tensor,
    first_row: int,
    start: int,
    size: int,
    stride_bcx: int,
    WIDTH: tl.constexpr,
    BIAS: tl.constexpr,
    RUN: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    i_r = tl.program_id(0).to(tl.int64)
    i_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = i_d < size
    if RUN:
        row = first_row + i_r
        place = i_r
    else:
        row = i_r if ALL_ROWS else tl.load(p_rows + i_r)
        place = tl.load(p_places + i_r)
    # As a vector: Triton's interpreter cannot use a scalar condition as a mask.
    i_place = place + tl.zeros((BLOCK_D,), dtype=tl.int64)
    dtype = p_out.dtype.element_ty
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for j in tl.static_range(WIDTH):
        back = WIDTH - 1 - j
        i_column = start + i_r + j if RUN else tl.load(p_columns + i_r * WIDTH + j)
        in_pass = i_place >= back
        p_b = p_bcx + (row - back) * stride_bcx + i_d
        b = tl.load(p_b, mask=m_d & in_pass, other=0.0).to(tl.float32)
        x = tl.load(p_b + 2 * size, mask=m_d & in_pass, other=0.0).to(tl.float32)
        p_column = p_memory + i_column * size + i_d
        made = (b * x).to(dtype)
        kept = tl.load(p_column, mask=m_d & (i_place < back), other=0.0).to(tl.float32)
        weight = tl.load(p_weight + j * size + i_d, mask=m_d, other=0.0)
        total += weight * tl.where(in_pass, made.to(tl.float32), kept)
        if back == 0:
            tl.store(p_column, made, mask=m_d)
    if BIAS:
        total += tl.load(p_bias + i_d, mask=m_d, other=0.0)
    c = tl.load(p_bcx + row * stride_bcx + size + i_d, mask=m_d, other=0.0).to(tl.float32)
    out = total.to(dtype).to(tl.float32) * c
    tl.store(p_out + row * size + i_d, out.to(dtype), mask=m_d)


def short_conv(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
) -> torch.Tensor:
    """bcx: [T', 3D]; returns [T', D] and writes the columns, as the public function."""
    width, size = weight.shape
    num_rows = sum(columns.row_counts)
    out = torch.empty((bcx.shape[0], size), dtype=bcx.dtype, device=bcx.device)
    out[num_rows:] = 0
    block = min(triton.next_power_of_2(size), BLOCK_COLUMNS)
    launches = [(run.memory[layer], run.num_rows, run.first_row, run.start) for run in columns.runs]
    if columns.own.shape[0]:
        launches.append((columns.memory[layer], columns.own.shape[0], -1, 0))
    for memory, count, first_row, start in launches:
        _short_conv_kernel[(count, triton.cdiv(size, block))](
            bcx,
            weight,
            weight if bias is None else bias,
            memory,
            columns.columns,
            columns.places,
            columns.own if columns.rows is None else columns.rows,
            out,
            first_row,
            start,
            size,
            bcx.stride(0),
            WIDTH=width,
            BIAS=bias is not None,
            RUN=first_row >= 0,
            ALL_ROWS=columns.rows is None,
            BLOCK_D=block,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out
