"""Linear layers in Triton: a tiled product whose tile the weight's shape fixes.

Knows: tiles, the kernel, the launch. Does not know: when it is chosen.
Letters: T packed tokens, K input width, O output width.
"""

from typing import TypedDict

import torch
import triton
import triton.language as tl

from pilotfish.kernels.linear.weight import LinearWeight

# At decode, tiles over O should occupy nine tenths of an H100's or H200's 132 multiprocessors.
TARGET_TILES = 120
# Rows from which arithmetic="fastest" takes the wide tile.
WIDE_ROWS = 128


class Tile(TypedDict):
    """Options of a launch: block sizes in elements, and how the loop over K is pipelined."""

    BLOCK_T: int
    BLOCK_O: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _linear_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_out: tl.tensor,
    num_rows: int,
    width_o: int,
    width_k: int,
    stride_x: int,
    stride_weight: int,
    BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    # Tiles over T are innermost, so that those running together share a tile of the weight in L2.
    i_t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    i_o = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    i_k = tl.arange(0, BLOCK_K)
    m_t = i_t < num_rows
    m_o = i_o < width_o
    p_x_tile = p_x + i_t[:, None] * stride_x + i_k[None, :]
    p_weight_tile = p_weight + i_o[None, :] * stride_weight + i_k[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for k in range(0, width_k, BLOCK_K):
        m_k = i_k < width_k - k
        x = tl.load(p_x_tile + k, mask=m_t[:, None] & m_k[None, :], other=0.0)
        weight = tl.load(p_weight_tile + k, mask=m_o[None, :] & m_k[:, None], other=0.0)
        if WIDEN:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        # ieee: float32 inputs are not rounded to TF32.
        total = tl.dot(x, weight, total, input_precision="ieee")
    if BIAS:
        total += tl.load(p_bias + i_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    p_out_tile = p_out + i_t[:, None] * width_o + i_o[None, :]
    tl.store(p_out_tile, total.to(p_out.dtype.element_ty), mask=m_t[:, None] & m_o[None, :])


def invariant_tile(width_o: int, dtype: torch.dtype) -> Tile:
    """Return the one tile for every number of rows: by the weight's O and dtype alone.

    64 rows are one Hopper tensor instruction; at decode the unused ones cost less than reading
    the weight does. The widest block of outputs that still makes TARGET_TILES tiles is taken.
    """
    fitting = [block for block in (128, 64, 32) if triton.cdiv(width_o, block) >= TARGET_TILES]
    block_o = fitting[0] if fitting else 16
    if dtype == torch.float32:
        return Tile(BLOCK_T=64, BLOCK_O=min(block_o, 64), BLOCK_K=32, num_warps=4, num_stages=3)
    block_k = 64 if block_o == 128 else 128
    return Tile(BLOCK_T=64, BLOCK_O=block_o, BLOCK_K=block_k, num_warps=4, num_stages=4)


def linear(x: torch.Tensor, weight: LinearWeight, *, invariant: bool) -> torch.Tensor:
    """x: [T, K], contiguous in K; returns a new [T, O], as the public function."""
    num_rows, width_o = x.shape[0], weight.out_features
    tile = invariant_tile(width_o, weight.dtype)
    if not invariant and num_rows >= WIDE_ROWS and weight.dtype != torch.float32:
        tile = Tile(BLOCK_T=128, BLOCK_O=128, BLOCK_K=64, num_warps=8, num_stages=4)
    out = torch.empty((num_rows, width_o), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    grid = (triton.cdiv(num_rows, tile["BLOCK_T"]), triton.cdiv(width_o, tile["BLOCK_O"]))
    _linear_kernel[grid](
        x,
        weight.weight,
        x if weight.bias is None else weight.bias,
        out,
        num_rows,
        width_o,
        weight.in_features,
        x.stride(0),
        weight.weight.stride(0),
        BIAS=weight.bias is not None,
        # Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those.
        WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
        **tile,
        enable_fp_fusion=True,
    )
    return out
