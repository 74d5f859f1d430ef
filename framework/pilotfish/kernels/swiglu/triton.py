"""SwiGLU in Triton: a program takes a piece of one row.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

import torch
import triton
import triton.language as tl

BLOCK_COLUMNS = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_kernel(
    p_gate_up: tl.tensor,
    p_out: tl.tensor,
    width: int,
    stride_t: int,
    BLOCK_I: tl.constexpr,
) -> None:
    i_t = tl.program_id(0).to(tl.int64)
    i_column = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_column = i_column < width
    dtype = p_out.dtype.element_ty
    p_gate = p_gate_up + i_t * stride_t + i_column
    gate = tl.load(p_gate, mask=m_column, other=0.0).to(tl.float32)
    up = tl.load(p_gate + width, mask=m_column, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(p_out + i_t * width + i_column, (silu * up).to(dtype), mask=m_column)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2I], columns contiguous; returns a new [T, I]."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(width), BLOCK_COLUMNS)
    _swiglu_kernel[(num_tokens, triton.cdiv(width, block))](
        gate_up,
        out,
        width,
        gate_up.stride(0),
        BLOCK_I=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
