"""write_kv in Triton: one program a row, in blocks along the row.

Knows: the kernel and its launch. Does not know: when it is chosen.
"""

import math

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _write_kernel(  # noqa: PLR0917
    p_kv: tl.tensor,
    p_cache: tl.tensor,
    p_slots: tl.tensor,
    width: int,
    stride_kv: int,
    BLOCK: tl.constexpr,
) -> None:
    i_row = tl.program_id(0).to(tl.int64)
    i_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = i_column < width
    slot = tl.load(p_slots + i_row)
    row = tl.load(p_kv + i_row * stride_kv + i_column, mask=m_column)
    tl.store(p_cache + slot * width + i_column, row, mask=m_column)


def write_kv(kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor) -> None:
    """kv: [T', *row_shape]; cache: [P, S, *row_shape]; write_slots: [T] int64; mutates cache."""
    num_rows, width = write_slots.shape[0], math.prod(cache.shape[2:])
    if num_rows == 0 or width == 0:
        return
    rows = kv if kv[0].is_contiguous() else kv.contiguous()
    block = min(triton.next_power_of_2(width), 1024)
    _write_kernel[(num_rows, triton.cdiv(width, block))](
        rows,
        cache,
        write_slots,
        width,
        rows.stride(0),
        BLOCK=block,
        enable_fp_fusion=False,
    )
