"""RMS norm in Triton: one program a row, so a row's bits cannot depend on its neighbours.

Knows: the kernels and their launch. Does not know: when they are chosen.
"""

import torch
import triton
import triton.language as tl

AFTER_WEIGHT = "after_weight"


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_residual: tl.tensor,
    p_weight: tl.tensor,
    p_out: tl.tensor,
    num_heads: int,
    width: int,
    stride_t: int,
    stride_n: int,
    stride_residual: int,
    eps: float,
    multiplier: float,
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    CAST_FIRST: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    i_t = i_row // num_heads
    i_n = i_row % num_heads
    i_d = tl.arange(0, BLOCK_D)
    m_d = i_d < width
    dtype = p_out.dtype.element_ty
    x = tl.load(p_x + i_t * stride_t + i_n * stride_n + i_d, mask=m_d, other=0.0).to(tl.float32)
    if ADD:
        p_stream = p_residual + i_row * stride_residual + i_d
        stream = tl.load(p_stream, mask=m_d, other=0.0).to(tl.float32) + multiplier * x
        stream = stream.to(dtype)
        tl.store(p_stream, stream, mask=m_d)
        x = stream.to(tl.float32)
    # rn: rounded as on a CPU; plain division and root are approximations on a GPU.
    mean = tl.div_rn(tl.sum(x * x, axis=0), width * 1.0)
    out = x * tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
    if WEIGHT:
        if CAST_FIRST:
            out = out.to(dtype).to(tl.float32)
        out *= tl.load(p_weight + i_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + i_row * width + i_d, out.to(dtype), mask=m_d)


def num_warps(block: int) -> int:
    """Warps of a row of `block` numbers; they decide the order of its sum."""
    return min(max(block // 512, 1), 16)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cast: str,
    *,
    residual: torch.Tensor | None = None,
    multiplier: float = 1.0,
) -> torch.Tensor:
    """x: [T, D] or [T, N, D], last axis contiguous; returns a new contiguous tensor.

    With a residual, [T, D] as x is: it is updated, and the norm is the sum's.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    rows = out.numel() // width
    if rows == 0:
        return out
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows,)](
        x,
        x if residual is None else residual,
        x if weight is None else weight,
        out,
        x.shape[1] if x.dim() == 3 else 1,
        width,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        0 if residual is None else residual.stride(0),
        eps,
        multiplier,
        ADD=residual is not None,
        WEIGHT=weight is not None,
        CAST_FIRST=cast != AFTER_WEIGHT,
        BLOCK_D=block,
        num_warps=num_warps(block),
        enable_fp_fusion=False,
    )
    return out
