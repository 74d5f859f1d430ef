"""paged_attention as a planned call. Knows: the records of `native.py`. Does not know: layers."""

from __future__ import annotations

import torch

from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.numbers import dtype_code
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.paged_attention.native import Arguments, pass_address

__all__ = ["pass_address", "plan_paged_attention"]


def plan_paged_attention(
    plan: Plan,
    q: Buffer,
    cache: Pointer,
    of_pass: Pointer,
    *,
    head_shape: tuple[int, int, int],
    cache_dtype: torch.dtype,
    scale: float,
    window: int | None = None,
    is_block: bool = False,
    shared_width: int | None = None,
) -> Buffer:
    """Plans attention over keys and values; returns [rows, N * H].

    q: [rows, at least N * H], the query heads in its first columns. head_shape: query heads N, kv
    heads K and head width H. cache: a layer's [P, S, 2, K, H] of cache_dtype. of_pass: what
    `pass_address` gives. shared_width: of a value where cache is [P, S, H], rows that are key and
    value; the result is then [rows, N * shared_width].
    """
    num_heads, num_kv_heads, head_dim = head_shape
    value_width = shared_width or head_dim
    half = 0 if shared_width else num_kv_heads * head_dim  # of a slot, where values begin
    out = Buffer(q.rows, num_heads * value_width, q.dtype)
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
        value_width=value_width,
        q_row_stride=q.width,
        q_head_stride=head_dim,
        slot_stride=2 * half or head_dim,
        value_offset=half,
        window=window or 0,
        is_block=is_block,
        q_dtype=dtype_code(q.dtype),
        cache_dtype=dtype_code(cache_dtype),
        scale=scale,
    )
    return out
