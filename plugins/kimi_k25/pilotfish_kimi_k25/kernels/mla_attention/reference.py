"""Attention over latent rows as the definition reads: every head's keys and values are made.

Slow: both forms are judged by it. Letters as in the package.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention import AttentionPlan
from pilotfish_kimi_k25.kernels.mla_attention import HeadWeights


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    weights: HeadWeights,
    *,
    scale: float,
    compute_dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Arguments as `attend_expanded`; compute_dtype: of all arithmetic and of the result."""
    up_key, up_value = weights.up_key.to(compute_dtype), weights.up_value.to(compute_dtype)
    out = q.new_zeros((*q.shape[:2], up_value.shape[1]), dtype=compute_dtype)
    size = plan.page_size_tokens
    for request, (start, count) in enumerate(zip(plan.offsets, plan.row_counts, strict=True)):
        num_keys = plan.num_keys[request]
        pages = plan.lookup_table[request, : -(-num_keys // size)].long()
        rows_JR = cache[pages].flatten(0, 1)[:num_keys].to(compute_dtype)
        latent_JC, rope_JR = rows_JR.tensor_split([up_key.shape[2]], dim=1)
        k_JNQ = torch.einsum("jc,nqc->jnq", latent_JC, up_key)
        v_JNV = torch.einsum("jc,nvc->jnv", latent_JC, up_value)
        rope_JNR = rope_JR[:, None].expand(-1, k_JNQ.shape[1], -1)
        k_JNH = torch.cat((k_JNQ, rope_JNR), dim=2)
        q_rows = q[start : start + count].to(compute_dtype)
        scores = scale * torch.einsum("inh,jnh->nij", q_rows, k_JNH)
        position = torch.arange(count, device=q.device) + plan.lengths[request]
        hidden = torch.arange(num_keys, device=q.device) > position[:, None]
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[start : start + count] = torch.einsum("nij,jnv->inv", shares, v_JNV)
    return out
