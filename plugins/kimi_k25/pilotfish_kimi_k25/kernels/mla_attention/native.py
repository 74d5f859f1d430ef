"""The absorbed form as a planned call: one kv head whose rows are keys and values at once.

Knows: `paged_attention`'s plan. Does not know: projections. Letters as in the package.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.paged_attention.planned import plan_paged_attention


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
    return plan_paged_attention(
        plan,
        q,
        cache,
        of_pass,
        head_shape=(num_heads, 1, q.width // num_heads),
        cache_dtype=cache_dtype,
        scale=scale,
        shared_width=latent_width,
    )
