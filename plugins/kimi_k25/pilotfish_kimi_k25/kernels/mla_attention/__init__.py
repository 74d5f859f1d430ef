"""Attention over latent rows in pages: prefill, chunks, verify and decode alike; two forms.

Knows: rows, pages and the latent's two parts. Does not know: how rows or weights were made.
Letters: T packed tokens, T' rows with padding, N heads, C width of the latent, R its width with the
turned part, P pages, S tokens in a page, J keys, H width of a made key or value.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import AttentionPlan, lay_out, paged_attention
from pilotfish_kimi_k25.kernels.head_linear import head_linear
from pilotfish_kimi_k25.kernels.mla_attention.expanded import made_pages

__all__ = [
    "HeadWeights",
    "attend_absorbed",
    "attend_expanded",
    "is_expanded_cheaper",
    "lay_out_expanded",
]


@attrs.frozen(eq=False, kw_only=True)
class HeadWeights:
    """What makes a head's keys and values of a latent row c: `up_key[n] @ c`, `up_value[n] @ c`.

    up_key: [N, Q, C]; up_value: [N, V, C]; views are fine.
    """

    up_key: torch.Tensor
    up_value: torch.Tensor


def attend_absorbed(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    latent_width: int,
    scale: float,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `softmax(scale * q c^T + causal mask) c[:, :C]` over each row's own request.

    q: [T', N, R], queries brought to the latent's space, rows past T are padding. cache: [P, S, R]
    contiguous, q's dtype (native: any float dtype), this pass's rows already written.
    latent_width: C; the row's other numbers are the turned part of the keys, no part of the values.
    Returns [T', N, C] of q's dtype, contiguous in C; rows past T mean nothing. Sums are float32.
    A row's bits depend on its q, the rows it sees, their positions, and the scale.
    Raises ValueError when shapes or dtypes do not fit.
    Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1 and appendix C, with the up-projections
    absorbed into q and the output.
    """
    if cache.ndim != 3 or not 0 < latent_width <= cache.shape[2]:
        raise ValueError(
            f"the cache is {list(cache.shape)} and the latent {latent_width} wide; wanted "
            "[P, S, R] and a latent of at most R"
        )
    if backend.name == "triton":
        from pilotfish_kimi_k25.kernels.mla_attention import triton

        return triton.attend(q, cache, plan, latent_width, scale)
    # torch sums the turned part too: its flash kernel wants values as wide as keys.
    return paged_attention(q, cache, plan, scale=scale, value_width=latent_width, backend=backend)


def attend_expanded(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    weights: HeadWeights,
    *,
    scale: float,
    backend: KernelBackend,
) -> torch.Tensor:
    """The same attention with every head's keys and values made first: less work for many rows.

    q: [T', N, Q + R - C], a head's plain part and then its turned one. cache: as above.
    Returns [T', N, V] of q's dtype, contiguous in V; rows past T mean nothing.
    Rounds elsewhere than the absorbed form, so the two differ in their last bits. A row's bits
    depend on what they depend on there, on triton and native; on torch also on the number of keys.
    """
    own_pages, own_plan = plan.cached(made_pages)
    value_width, latent_width = weights.up_value.shape[1:]
    key_width = q.shape[2]
    width = max(key_width, value_width)
    rows_JR = cache.index_select(0, own_pages).flatten(0, 1)
    latent_JNC = rows_JR[:, None, :latent_width].expand(-1, q.shape[1], -1)
    made = cache.new_zeros((len(own_pages), plan.page_size_tokens, 2, q.shape[1], width))
    kv_J2NH = made.flatten(0, 1)
    plain = weights.up_key.shape[1]
    kv_J2NH[:, 0, :, :plain] = head_linear(latent_JNC, weights.up_key, backend=backend)
    kv_J2NH[:, 0, :, plain:key_width] = rows_JR[:, None, latent_width:]
    kv_J2NH[:, 1, :, :value_width] = head_linear(latent_JNC, weights.up_value, backend=backend)
    if width > key_width:
        q = torch.nn.functional.pad(q, (0, width - key_width))
    out = paged_attention(q, made, own_plan, scale=scale, backend=backend)
    return out[..., :value_width]


def lay_out_expanded(
    plan: AttentionPlan, num_rows: int, num_heads: int, *, backend: KernelBackend
) -> None:
    """Before a pass's first layer: what `attend_expanded` shares in it. num_rows: T'."""
    _, own_plan = plan.cached(made_pages)
    lay_out(
        own_plan,
        num_rows=num_rows,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        backend=backend,
    )


def is_expanded_cheaper(plan: AttentionPlan, weights: HeadWeights, row_width: int) -> bool:
    """Whether the expanded form takes fewer multiply-adds for this pass. row_width: R.

    A head multiplies 2R numbers a row and key in the absorbed form, and C (Q + V) a row to get
    there and back; in the expanded one the widths of its key and value, and C (Q + V) a key.
    """
    (_, key_width, latent_width), value_width = weights.up_key.shape, weights.up_value.shape[1]
    wide = max(key_width + row_width - latent_width, value_width)
    pairs = sum(n * j for n, j in zip(plan.row_counts, plan.num_keys, strict=True))
    made = latent_width * (key_width + value_width)
    expanded = 2 * wide * pairs + made * sum(plan.num_keys)
    return expanded < 2 * row_width * pairs + made * plan.num_rows
