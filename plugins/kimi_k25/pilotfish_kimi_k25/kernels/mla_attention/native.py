"""The absorbed form as a planned call: one kv head whose rows are keys and values at once.

Knows: `paged_attention`'s record. Does not know: projections. Letters as in the package.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.numbers import dtype_code
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.paged_attention.native import Arguments


def plan_attend_absorbed(
    plan: Plan,
    q: Buffer,
    cache: Pointer,
    of_pass: Pointer,
    *,
    num_heads: int,
    latent_width: int,
    cache_dtype: torch.dtype,
    scale: float,
) -> Buffer:
    """Plans `attend_absorbed` for [T, N R] queries; returns [T, N C]. of_pass: see PassPlan."""
    row_width = q.width // num_heads
    out = Buffer(q.rows, num_heads * latent_width, q.dtype)
    plan.call(
        "paged_attention",
        Arguments,
        of_pass=of_pass,
        q=q,
        cache=cache,
        out=out,
        heads=num_heads,
        kv_heads=1,
        width=row_width,
        value_width=latent_width,
        q_row_stride=q.width,
        q_head_stride=row_width,
        slot_stride=row_width,
        value_offset=0,
        window=0,
        is_block=False,
        q_dtype=dtype_code(q.dtype),
        cache_dtype=dtype_code(cache_dtype),
        scale=scale,
    )
    return out
