"""Grouped linear in Triton: a block of rows of one group at a time, INT4 unpacked per tile.

Knows: tiles, the kernels, the launch. Does not know: when it is chosen.
Letters: R sorted rows, K input width, O output width, E groups, B blocks of rows, C columns that
share a scale.
"""

import torch
import triton
import triton.language as tl

from pilotfish.kernels.grouped_linear.groups import BLOCK_ROWS, RowGroups
from pilotfish.kernels.grouped_linear.weight import GroupedWeight
from pilotfish.kernels.linear.triton import Tile


@triton.jit  # type: ignore[untyped-decorator]
def _grouped_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_weight: tl.tensor,
    p_scale: tl.tensor,
    p_out: tl.tensor,
    p_blocks: tl.tensor,
    width_o: int,
    width_k: int,
    num_scales: int,
    stride_x: int,
    INT4: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    # Blocks of one group are neighbours, so that those running together share its weight in L2.
    p_block = p_blocks + tl.program_id(0) * 3
    group = tl.load(p_block).to(tl.int64)
    first = tl.load(p_block + 1).to(tl.int64)
    end = tl.load(p_block + 2).to(tl.int64)
    if first == end:
        return
    i_t = first + tl.arange(0, BLOCK_T)
    i_o = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    i_k = tl.arange(0, BLOCK_K)
    m_t = i_t < end
    m_o = i_o < width_o
    dtype = p_x.dtype.element_ty
    row_o = group * width_o + i_o
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for k in range(0, width_k, BLOCK_K):
        column = k + i_k
        m_k = column < width_k
        m_weight = m_o[None, :] & m_k[:, None]
        x = tl.load(
            p_x + i_t[:, None] * stride_x + column[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )
        if INT4:
            p_word = p_weight + row_o[None, :] * (width_k // 8) + (column // 8)[:, None]
            word = tl.load(p_word, mask=m_weight, other=0)
            number = ((word >> ((column % 8) * 4)[:, None]) & 15) - 8
            p_factor = p_scale + row_o[None, :] * num_scales + (column // GROUP_SIZE)[:, None]
            scale = tl.load(p_factor, mask=m_weight, other=0.0).to(tl.float32)
            weight = (number.to(tl.float32) * scale).to(dtype)
        else:
            p_value = p_weight + row_o[None, :] * width_k + column[:, None]
            weight = tl.load(p_value, mask=m_weight, other=0.0)
        if WIDEN:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        # ieee: float32 inputs are not rounded to TF32.
        total = tl.dot(x, weight, total, input_precision="ieee")
    p_out_tile = p_out + i_t[:, None] * width_o + i_o[None, :]
    tl.store(p_out_tile, total.to(p_out.dtype.element_ty), mask=m_t[:, None] & m_o[None, :])


def tile_of(weight: GroupedWeight) -> Tile:
    """Return the one tile for every number of rows: by the weight's form and dtype alone.

    A block has as many rows as one Hopper tensor instruction; at decode the unused ones cost less
    than reading the weight does. Many groups run at once, so the tile need not be narrow.
    """
    if weight.dtype == torch.float32:
        return Tile(BLOCK_T=BLOCK_ROWS, BLOCK_O=32, BLOCK_K=32, num_warps=4, num_stages=3)
    block_k = 64 if weight.kind == "triton_int4" else 128
    return Tile(BLOCK_T=BLOCK_ROWS, BLOCK_O=64, BLOCK_K=block_k, num_warps=4, num_stages=3)


def grouped_linear(x: torch.Tensor, weight: GroupedWeight, groups: RowGroups) -> torch.Tensor:
    """x: [R, K], contiguous in K; returns a new [R, O], as the public function."""
    assert weight.stacked is not None
    assert groups.blocks is not None
    num_rows, width_o = x.shape[0], weight.out_features
    out = torch.empty((num_rows, width_o), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    is_int4, tile = weight.scale is not None, tile_of(weight)
    num_scales = weight.scale.shape[-1] if weight.scale is not None else 1
    _grouped_kernel[(groups.blocks.shape[0], triton.cdiv(width_o, tile["BLOCK_O"]))](
        x,
        weight.stacked,
        weight.scale if is_int4 else x,
        out,
        groups.blocks,
        width_o,
        weight.in_features,
        num_scales,
        x.stride(0),
        INT4=is_int4,
        GROUP_SIZE=weight.in_features // num_scales,
        # Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those.
        WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
        **tile,
        enable_fp_fusion=True,
    )
    return out
