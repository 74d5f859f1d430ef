"""Attention of a ragged pass over paged keys and values: prefill, chunks, verify and decode alike.

Knows: rows, pages and masks. Does not know: who owns a page, or how q, keys and values were made.
Letters: B requests, T packed tokens, T' rows with padding, N query heads, K kv heads, H head width,
G = N / K query heads a kv head, P pages, S tokens in a page. A cache of [P, S, H] has shared rows:
one row is the key and the value of the one kv head, K = 1.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.native.numbers import has_code
from pilotfish.kernels.paged_attention import eager, native
from pilotfish.kernels.paged_attention.plan import AttentionPlan, plan_attention

Mode: TypeAlias = Literal["causal", "block"]

__all__ = ["AttentionPlan", "Mode", "lay_out", "paged_attention", "plan_attention"]


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    mode: Mode = "causal",
    value_width: int | None = None,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `softmax(scale * q k^T + mask) v` for every row over its own request's keys.

    q: [T', N, H], T' >= T; rows past T are padding. cache: [P, S, 2, K, H], or [P, S, H] with
    shared rows (not on triton), contiguous, q's dtype (native: any float dtype); this pass's were
    already written into it (see `write_kv`).
    Row i of request b stands at position p = lengths[b] + i. With mode "causal" it sees the keys
    j <= p, and with a window W only j > p - W: W keys, itself included. With mode "block" every
    row sees all keys of its request, this pass's included; with a window those with |p - j| < W.
    value_width: V, the first columns of a value that are wanted; None means H.
    Returns a new contiguous [T', N, V] of q's dtype; rows past T mean nothing. Sums are float32.
    A row's bits depend on its q, on the keys and values it sees, their positions, and the scale,
    window and mode; not on batch mates, on how many rows a pass has, nor on where pages lie. Slots
    that no row of the pass may see are never used: they may hold NaN. On torch and native a row is
    also not reached by numbers that are not finite in keys and values that other rows of the pass
    see and it does not; on triton it is: a weight of 0 times NaN is NaN.
    Raises ValueError when shapes, dtypes, window or mode do not fit.
    """
    _check(q, cache, plan, backend)
    if value_width is None:
        value_width = q.shape[2]
    elif not 0 < value_width <= q.shape[2]:
        raise ValueError(
            f"value_width is {value_width}; wanted 1 to {q.shape[2]}, the width of a value"
        )
    mask_spec = plan.mask_spec(window, mode)
    if backend.name == "triton":
        from pilotfish.kernels.paged_attention import triton

        out = triton.paged_attention(q, cache, plan, scale, mask_spec)
        return out[..., :value_width].contiguous()
    if backend.name == "native":
        return native.paged_attention(q, cache, plan, scale, mask_spec, value_width=value_width)
    return eager.paged_attention(
        q, cache, plan, scale, mask_spec, value_width=value_width, invariant=backend.invariant
    )


def lay_out(
    plan: AttentionPlan,
    *,
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    window: int | None = None,
    mode: Mode = "causal",
    backend: KernelBackend,
) -> None:
    """Makes ready, before a pass's first layer, what `paged_attention` calls of one kind share.

    num_rows: T'. num_heads, num_kv_heads: N and K; shared rows have one kv head. The others as
    `paged_attention` gets them. Only torch on a CPU has anything to make, once for each kind: where
    that was not done, the first call does it.
    """
    if backend.name == "torch" and plan.lookup_table.device.type == "cpu":
        eager.layout_of(plan, plan.mask_spec(window, mode), num_rows, num_heads, num_kv_heads)


def _check(
    q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, backend: KernelBackend
) -> None:
    if q.ndim != 3 or q.shape[0] < plan.num_rows:
        raise ValueError(
            f"q is {list(q.shape)}; wanted [T', N, H] with T' >= {plan.num_rows}, the plan's rows"
        )
    size, width = plan.page_size_tokens, q.shape[2]
    num_kv_heads = cache.shape[3] if cache.ndim == 5 else 1
    if list(cache.shape[1:]) not in ([size, 2, num_kv_heads, width], [size, width]):
        raise ValueError(
            f"the cache is {list(cache.shape)}; wanted [P, {size}, 2, K, {width}], or with shared "
            f"rows [P, {size}, {width}], to fit the plan's page size and q's head width"
        )
    if cache.ndim == 3 and backend.name == "triton":
        raise ValueError(
            f"the cache is {list(cache.shape)}; wanted [P, {size}, 2, K, {width}]: "
            "paged_attention takes shared rows on torch and native alone"
        )
    is_native = backend.name == "native"
    fits = has_code(q.dtype, cache.dtype) if is_native else q.dtype == cache.dtype
    if q.shape[1] % num_kv_heads or not fits or not cache.is_contiguous():
        dtypes = "float32, bfloat16 or float16" if is_native else "one dtype"
        raise ValueError(
            f"q has {q.shape[1]} heads of {q.dtype}; the cache {num_kv_heads} of {cache.dtype}, "
            f"strides {cache.stride()}; wanted a multiple of its heads, {dtypes}, and a "
            "contiguous cache: cast q and pass a layer's own block"
        )
