"""write_context_kv in Triton: norm, rotation and both copies of a head in one program.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from pilotfish.kernels.rms_norm.triton import num_warps


@triton.jit  # type: ignore[untyped-decorator]
def _context_kernel(  # noqa: PLR0917
    p_kv: tl.tensor,
    p_weight: tl.tensor,
    p_cos: tl.tensor,
    p_sin: tl.tensor,
    p_caches: tl.tensor,
    p_slots: tl.tensor,
    num_layers: int,
    num_heads: int,
    width: int,
    half: int,
    eps: float,
    BLOCK_H: tl.constexpr,
) -> None:
    """One key head of one row and layer, and the value head beside it.

    p_caches: [L] int64, where each layer's cache begins.
    """
    i_t = tl.program_id(0).to(tl.int64)
    i_layer = tl.program_id(1) // num_heads
    i_head = tl.program_id(1) % num_heads
    i_h = tl.arange(0, BLOCK_H)
    m_h = i_h < width
    dtype = p_kv.dtype.element_ty
    row = num_heads * width
    p_key = p_kv + (i_t * num_layers + i_layer) * 2 * row + i_head * width
    key = tl.load(p_key + i_h, mask=m_h, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(key * key, axis=0), width * 1.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))

    # The other half of each pair is read again, and normed in the same way.
    is_first = i_h < half
    m_rope = i_h < 2 * half
    i_other = tl.where(is_first, i_h + half, tl.where(m_rope, i_h - half, i_h))
    other = tl.load(p_key + i_other, mask=m_h, other=0.0).to(tl.float32)
    p_gain = p_weight + i_layer * width
    gain = tl.load(p_gain + i_h, mask=m_h, other=0.0).to(tl.float32)
    gain_other = tl.load(p_gain + i_other, mask=m_h, other=0.0).to(tl.float32)
    key = ((key * scale).to(dtype).to(tl.float32) * gain).to(dtype).to(tl.float32)
    other = ((other * scale).to(dtype).to(tl.float32) * gain_other).to(dtype).to(tl.float32)
    cos = tl.load(p_cos + i_t * 2 * half + i_h, mask=m_rope, other=1.0)
    sin = tl.load(p_sin + i_t * 2 * half + i_h, mask=m_rope, other=0.0)
    key = key * cos + tl.where(is_first, -other, other) * sin

    p_cache = tl.load(p_caches + i_layer).to(tl.pointer_type(dtype))
    p_row = p_cache + tl.load(p_slots + i_t) * 2 * row + i_head * width
    tl.store(p_row + i_h, key.to(dtype), mask=m_h)
    value = tl.load(p_key + row + i_h, mask=m_h)
    tl.store(p_row + row + i_h, value, mask=m_h)


def write_context_kv(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    eps: float,
) -> None:
    """Arguments as the public function; one launch for all layers."""
    num_rows, (_, num_layers, _, num_heads, width) = write_slots.shape[0], kv.shape
    cos, sin = angles
    if num_rows == 0 or num_layers == 0:
        return
    block = triton.next_power_of_2(width)
    places = torch.tensor([cache.data_ptr() for cache in caches], device=kv.device)
    _context_kernel[(num_rows, num_layers * num_heads)](
        kv,
        k_weight.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        places,
        write_slots,
        num_layers,
        num_heads,
        width,
        cos.shape[1] // 2,
        eps,
        BLOCK_H=block,
        num_warps=num_warps(block),  # a sum in the order of `rms_norm`
        enable_fp_fusion=False,
    )
