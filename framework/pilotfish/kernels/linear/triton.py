"""Linear layers in Triton: a tiled product whose tile the weight's shape fixes.

Knows: tiles, the kernel, the launch. Does not know: when it is chosen.
Letters: T packed tokens, K input width, O output width.
"""

import attrs
import torch
import triton
import triton.language as tl

from pilotfish.kernels.linear.weight import LinearWeight

# At decode, tiles over O should occupy nine tenths of an H100's or H200's 132 multiprocessors.
TARGET_TILES = 120
# Rows from which arithmetic="fastest" takes the wide tile.
WIDE_ROWS = 128


@attrs.frozen(kw_only=True)
class Tile:
    """Block sizes in elements, and how the loop over K is pipelined."""

    block_t: int
    block_o: int
    block_k: int
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
        return Tile(block_t=64, block_o=min(block_o, 64), block_k=32, num_warps=4, num_stages=3)
    block_k = 64 if block_o == 128 else 128
    return Tile(block_t=64, block_o=block_o, block_k=block_k, num_warps=4, num_stages=4)


def fastest_tile(num_rows: int, width_o: int, dtype: torch.dtype) -> Tile:
    """Return a tile that may depend on the number of rows."""
    if num_rows < WIDE_ROWS or dtype == torch.float32:
        return invariant_tile(width_o, dtype)
    return Tile(block_t=128, block_o=128, block_k=64, num_warps=8, num_stages=4)


def linear(x: torch.Tensor, weight: LinearWeight, *, invariant: bool) -> torch.Tensor:
    """x: [T, K], contiguous in K; returns a new [T, O], as the public function."""
    num_rows, width_o = x.shape[0], weight.out_features
    tile = (
        invariant_tile(width_o, weight.dtype)
        if invariant
        else fastest_tile(num_rows, width_o, weight.dtype)
    )
    return linear_with(x, weight, tile)


def linear_with(x: torch.Tensor, weight: LinearWeight, tile: Tile) -> torch.Tensor:
    """As `linear`, with the tile given."""
    num_rows, width_o = x.shape[0], weight.out_features
    out = torch.empty((num_rows, width_o), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    _linear_kernel[(triton.cdiv(num_rows, tile.block_t), triton.cdiv(width_o, tile.block_o))](
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
        BLOCK_T=tile.block_t,
        BLOCK_O=tile.block_o,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    return out
