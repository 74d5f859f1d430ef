"""paged_attention as the definition reads, in float32 or wider, one row's request at a time.

Slow: the other implementations are judged by it. Letters as in the package.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan


def visible(positions: torch.Tensor, num_keys: int, mask_spec: MaskSpec) -> torch.Tensor:
    """positions: [n] int64 of the rows; returns [n, num_keys] bool: may row p see key j?"""
    p, j = positions[:, None], torch.arange(num_keys, device=positions.device)[None, :]
    seen = (j <= p) if mask_spec.mode == "causal" else torch.ones_like(j <= p)
    return seen if mask_spec.window is None else seen & ((p - j).abs() < mask_spec.window)


def gather_keys_values(
    cache: torch.Tensor, plan: AttentionPlan, request: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the keys and the values of one request in order, each [keys, K, H]."""
    if cache.ndim == 3:
        cache = cache[:, :, None, None].expand(-1, -1, 2, -1, -1)
    num_keys = plan.num_keys[request]
    pages = plan.lookup_table[request, : -(-num_keys // plan.page_size_tokens)].long()
    rows = cache[pages].flatten(0, 1)[:num_keys]
    return rows[:, 0], rows[:, 1]


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    mask_spec: MaskSpec,
    *,
    compute_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Arguments and result as the public function; compute_dtype: the dtype of all arithmetic."""
    out = torch.zeros_like(q)
    for request, (start, count) in enumerate(zip(plan.offsets, plan.row_counts, strict=True)):
        keys, values = gather_keys_values(cache, plan, request)
        group = q.shape[1] // keys.shape[1]
        k_JNH = keys.to(compute_dtype).repeat_interleave(group, dim=1)
        v_JNH = values.to(compute_dtype).repeat_interleave(group, dim=1)
        positions = torch.arange(count, device=q.device) + plan.lengths[request]
        q_rows = q[start : start + count].to(compute_dtype)
        scores = scale * torch.einsum("inh,jnh->nij", q_rows, k_JNH)
        hidden = ~visible(positions, keys.shape[0], mask_spec)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        # 0 * NaN is NaN: values that are not finite are left out for the rows that do not see them.
        odd = ~v_JNH.isfinite()
        sees_odd = torch.einsum("ij,jnh->inh", (~hidden).to(compute_dtype), odd.to(compute_dtype))
        clean = torch.einsum("nij,jnh->inh", weights, v_JNH.masked_fill(odd, 0.0))
        whole = torch.einsum("nij,jnh->inh", weights, v_JNH)
        out[start : start + count] = torch.where(sees_odd > 0, whole, clean).to(q.dtype)
    return out
