"""head_linear in Triton: a tiled product for every head, its tile fixed by the dtype.

Knows: tiles, the kernel, the launch. Does not know: when it is chosen.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_O = 16, 64


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _head_linear_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_weight: tl.tensor,
    p_out: tl.tensor,
    num_rows: int,
    num_heads: int,
    width_o: int,
    width_k: int,
    stride_xt: int,
    stride_xn: int,
    stride_wn: int,
    stride_wo: int,
    stride_wk: int,
    WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    i_t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    i_o = (tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    i_n = tl.program_id(2).to(tl.int64)
    i_k = tl.arange(0, BLOCK_K)
    m_t = i_t < num_rows
    m_o = i_o < width_o
    p_x_tile = p_x + i_n * stride_xn + i_t[:, None] * stride_xt + i_k[None, :]
    p_weight_tile = p_weight + i_n * stride_wn + i_o[None, :] * stride_wo
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for k in range(0, width_k, BLOCK_K):
        m_k = i_k < width_k - k
        x = tl.load(p_x_tile + k, mask=m_t[:, None] & m_k[None, :], other=0.0)
        p_w = p_weight_tile + (k + i_k)[:, None].to(tl.int64) * stride_wk
        weight = tl.load(p_w, mask=m_o[None, :] & m_k[:, None], other=0.0)
        if WIDEN:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        # ieee: float32 inputs are not rounded to TF32.
        total = tl.dot(x, weight, total, input_precision="ieee")
    p_out_tile = p_out + (i_t[:, None] * num_heads + i_n) * width_o + i_o[None, :]
    tl.store(p_out_tile, total.to(p_out.dtype.element_ty), mask=m_t[:, None] & m_o[None, :])


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [T, N, K]; weight: [N, O, K], any strides; returns a new contiguous [T, N, O]."""
    (num_rows, num_heads, width_k), width_o = x.shape, weight.shape[1]
    out = torch.empty((num_rows, num_heads, width_o), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    if x.stride(2) != 1:
        x = x.contiguous()
    grid = (triton.cdiv(num_rows, BLOCK_T), triton.cdiv(width_o, BLOCK_O), num_heads)
    _head_linear_kernel[grid](
        x,
        weight,
        out,
        num_rows,
        num_heads,
        width_o,
        width_k,
        x.stride(0),
        x.stride(1),
        weight.stride(0),
        weight.stride(1),
        weight.stride(2),
        # Triton's interpreter keeps bfloat16 as raw 16-bit integers, and would multiply those.
        WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
        BLOCK_T=BLOCK_T,
        BLOCK_O=BLOCK_O,
        BLOCK_K=32 if x.dtype == torch.float32 else 64,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out
