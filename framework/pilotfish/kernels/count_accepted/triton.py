"""How many drafts agree, in Triton: a program takes one request.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _count_kernel(
    p_tokens: tl.tensor,
    p_drafts: tl.tensor,
    p_offsets: tl.tensor,
    p_counts: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> None:
    i_b = tl.program_id(0)
    start = tl.load(p_offsets + i_b).to(tl.int64)
    num_drafts = tl.load(p_offsets + i_b + 1).to(tl.int64) - start - 1
    i_row = tl.arange(0, BLOCK_R)
    count = num_drafts
    first = num_drafts * 0
    while first < num_drafts:
        m_row = first + i_row < num_drafts
        token = tl.load(p_tokens + start + first + i_row, mask=m_row, other=0)
        draft = tl.load(p_drafts + start + first + i_row, mask=m_row, other=0)
        place = tl.where(m_row & (token != draft), first + i_row, num_drafts)
        count = tl.minimum(count, tl.min(place, axis=0))
        first += BLOCK_R
    tl.store(p_counts + i_b, count)


def count_accepted(
    tokens: torch.Tensor, drafts: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """As the public function; nothing is read on the host."""
    num_requests = offsets.shape[0] - 1
    counts = torch.empty(num_requests, dtype=torch.int64, device=tokens.device)
    if num_requests:
        _count_kernel[(num_requests,)](
            tokens,
            drafts,
            offsets,
            counts,
            BLOCK_R=16,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return counts
