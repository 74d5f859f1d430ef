"""paged_attention as a planned call. Knows: the records of `native.py`. Does not know: layers."""

from __future__ import annotations

import ctypes

import torch

from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.numbers import dtype_code
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.paged_attention.native import Arguments, pass_arguments
from pilotfish.kernels.paged_attention.plan import AttentionPlan


def pass_address(plan: AttentionPlan) -> int:
    """What planned calls are given of a pass; it is valid as long as the AttentionPlan lives."""
    record = pass_arguments(plan)  # which the plan keeps
    return ctypes.addressof(record)


def plan_paged_attention(
    plan: Plan,
    q: Buffer,
    cache: Pointer,
    of_pass: Pointer,
    *,
    head_shape: tuple[int, int, int],
    cache_dtype: torch.dtype,
    scale: float,
    window: int | None,
    is_block: bool,
) -> Buffer:
    """Plans attention over keys and values; returns [rows, N * H].

    q: [rows, at least N * H], the query heads in its first columns. head_shape: query heads N, kv
    heads K and head width H. cache: a layer's [P, S, 2, K, H] of cache_dtype. of_pass: what
    `pass_address` gives.
    """
    num_heads, num_kv_heads, head_dim = head_shape
    out = Buffer(q.rows, num_heads * head_dim, q.dtype)
    plan.call(
        "paged_attention",
        Arguments,
        of_pass=of_pass,
        q=q,
        cache=cache,
        out=out,
        heads=num_heads,
        kv_heads=num_kv_heads,
        width=head_dim,
        value_width=head_dim,
        q_row_stride=q.width,
        q_head_stride=head_dim,
        slot_stride=2 * num_kv_heads * head_dim,
        value_offset=num_kv_heads * head_dim,
        window=window or 0,
        is_block=is_block,
        q_dtype=dtype_code(q.dtype),
        cache_dtype=dtype_code(cache_dtype),
        scale=scale,
    )
    return out
