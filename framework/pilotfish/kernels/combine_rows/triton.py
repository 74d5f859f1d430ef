"""The weighted sum of rows in Triton: a program takes a piece of one row.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

import torch
import triton
import triton.language as tl

BLOCK_COLUMNS = 1024


@triton.jit(do_not_specialize=["num_filled"])  # type: ignore[untyped-decorator]
def _combine_kernel(  # noqa: PLR0917
    p_x: tl.tensor,
    p_places: tl.tensor,
    p_weights: tl.tensor,
    p_last: tl.tensor,
    p_out: tl.tensor,
    num_filled: int,
    num_terms: int,
    width: int,
    stride_x: int,
    stride_last: int,
    LAST: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    i_t = tl.program_id(0).to(tl.int64)
    i_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = i_d < width
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for s in range(tl.where(i_t < num_filled, num_terms, 0)):
        place = tl.load(p_places + i_t * num_terms + s)
        factor = tl.load(p_weights + i_t * num_terms + s)
        total += factor * tl.load(p_x + place * stride_x + i_d, mask=m_d, other=0.0).to(tl.float32)
    if LAST:
        total += tl.load(p_last + i_t * stride_last + i_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + i_t * width + i_d, total.to(p_out.dtype.element_ty), mask=m_d)


def combine_rows(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None,
    num_rows: int,
) -> torch.Tensor:
    """As the public function; x and last contiguous in D."""
    num_filled, num_terms = places.shape
    out = torch.empty((num_rows, x.shape[1]), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(x.shape[1]), BLOCK_COLUMNS)
    _combine_kernel[(num_rows, triton.cdiv(x.shape[1], block))](
        x,
        places.contiguous(),
        weights.contiguous(),
        x if last is None else last,
        out,
        num_filled,
        num_terms,
        x.shape[1],
        x.stride(0),
        0 if last is None else last.stride(0),
        LAST=last is not None,
        BLOCK_D=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
