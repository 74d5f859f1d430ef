"""Rotary embedding in Triton: one program a token, each pair read and written by one lane.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _rope_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_cos: tl.tensor,
    p_sin: tl.tensor,
    num_heads: int,
    half: int,
    stride_t: int,
    stride_n: int,
    stride_cos: int,
    stride_sin: int,
    step: int,
    gap: int,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    i_t = tl.program_id(0).to(tl.int64)
    i_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_pair = tl.arange(0, BLOCK_R)
    m_pair = i_pair < half
    i_first = i_pair * step
    cos_first = tl.load(p_cos + i_t * stride_cos + i_first, mask=m_pair, other=0.0)
    cos_second = tl.load(p_cos + i_t * stride_cos + i_first + gap, mask=m_pair, other=0.0)
    sin_first = tl.load(p_sin + i_t * stride_sin + i_first, mask=m_pair, other=0.0)
    sin_second = tl.load(p_sin + i_t * stride_sin + i_first + gap, mask=m_pair, other=0.0)
    m_head = (i_n < num_heads)[:, None] & m_pair[None, :]
    p_first = p_x + i_t * stride_t + i_n.to(tl.int64)[:, None] * stride_n + i_first[None, :]
    first = tl.load(p_first, mask=m_head, other=0.0).to(tl.float32)
    second = tl.load(p_first + gap, mask=m_head, other=0.0).to(tl.float32)
    dtype = p_x.dtype.element_ty
    rope_first = first * cos_first[None, :] - second * sin_first[None, :]
    rope_second = second * cos_second[None, :] + first * sin_second[None, :]
    tl.store(p_first, rope_first.to(dtype), mask=m_head)
    tl.store(p_first + gap, rope_second.to(dtype), mask=m_head)


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """x: [T, N, H], mutated, heads contiguous inside; cos, sin: [T, R]; returns x."""
    num_tokens, num_heads, _ = x.shape
    half = cos.shape[-1] // 2
    if num_tokens == 0:
        return x
    block_r = triton.next_power_of_2(half)
    # About 1024 pairs a program; fixed by the shape of a row, never by T.
    block_n = min(triton.next_power_of_2(num_heads), max(1024 // block_r, 1))
    _rope_kernel[(num_tokens, triton.cdiv(num_heads, block_n))](
        x,
        cos,
        sin,
        num_heads,
        half,
        x.stride(0),
        x.stride(1),
        cos.stride(0),
        sin.stride(0),
        2 if interleaved else 1,
        1 if interleaved else half,
        BLOCK_N=block_n,
        BLOCK_R=block_r,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return x
