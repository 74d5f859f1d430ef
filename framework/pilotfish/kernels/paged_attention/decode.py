"""Requests with few rows (decode, verify) computed together: one flash call a partition size.

Knows: how to run what `gqa_packing` and `pairs` laid out. Does not know: long prefills.
Letters as in `gqa_packing` and `pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from pilotfish.kernels.paged_attention.flash import MASK_VALUE, flash, merge_weights
from pilotfish.kernels.paged_attention.gather import Gather, RowKind
from pilotfish.kernels.paged_attention.gqa_packing import GQAPacking, pack_gqa
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.pairs import Calls, make_calls
from pilotfish.kernels.paged_attention.plan import AttentionPlan


@attrs.frozen(kw_only=True)
class DecodeLayout:
    """What every layer with this kind of row and mask needs; gathers: one a call.

    out_index: the packing's, or [T'*N] where nothing is computed alone; num_rows: t, or T'.
    """

    packing: GQAPacking
    out_index: torch.Tensor
    calls: Calls
    gathers: tuple[Gather, ...]
    num_rows: int


def lay_out_decode(
    plan: AttentionPlan,
    requests: Sequence[int],
    num_heads: int,
    row: RowKind,
    mask_spec: MaskSpec,
    *,
    num_rows: int | None,
) -> DecodeLayout:
    """requests: indices of the requests that are computed together, in order.

    num_rows: T', if they are all that have rows; padding rows then repeat the first result.
    """
    packing = plan.recall(
        ("packing", num_heads, row.num_kv_heads),
        lambda: pack_gqa(plan, requests, num_heads, row.num_kv_heads),
    )
    calls = plan.recall(
        ("calls", packing.group, mask_spec), lambda: make_calls(plan, requests, packing, mask_spec)
    )
    gathers = (Gather.make(plan, c.slots, c.mask.shape[0], row) for c in calls.calls)
    own_rows = sum(plan.row_counts[b] for b in requests)
    num_rows = own_rows if num_rows is None else num_rows
    padding = packing.out_index.new_zeros((num_rows - own_rows) * num_heads)
    return DecodeLayout(
        packing=packing,
        out_index=torch.cat((packing.out_index, padding)) if len(padding) else packing.out_index,
        calls=calls,
        gathers=tuple(gathers),
        num_rows=num_rows,
    )


def attend(
    q: torch.Tensor,
    cache_rows: torch.Tensor,
    decode: DecodeLayout,
    scale: float,
    *,
    value_width: int,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """q: [T', N, H]; cache_rows: [P*S, (2,) K, H']. Fills these requests' rows of out.

    Only the first value_width columns of the values are merged; out: [T', N, value_width].

    out is None when nothing is computed alone: then a new tensor is made without filling it first.
    """
    _, num_heads, width = q.shape
    packing, calls = decode.packing, decode.calls
    q_rows = q.reshape(-1, width).index_select(0, packing.q_index)
    q_RKMH = q_rows.view(-1, cache_rows.shape[-2], packing.num_folded, width)
    parts, lses = [], []
    for call, gather in zip(calls.calls, decode.gathers, strict=True):
        gather.fill(cache_rows)
        q_IKMH = q_RKMH if call.requests is None else q_RKMH.index_select(0, call.requests)
        part_IKMH, lse_IKM = flash(q_IKMH, gather.k, gather.v, call.mask, scale)
        parts.append(part_IKMH[..., :value_width])
        lses.append(lse_IKM)
    result = parts[0] if calls.num_partitions == len(parts) == 1 else _merge(parts, lses, calls)
    flat = (result if result.dtype == q.dtype else result.to(q.dtype)).reshape(-1, value_width)
    shape = (decode.num_rows, num_heads, value_width)
    if out is None:
        return flat.index_select(0, decode.out_index).view(shape)
    return out.index_copy_(0, packing.rows, flat.index_select(0, decode.out_index).view(shape))


def _merge(parts: list[torch.Tensor], lses: list[torch.Tensor], calls: Calls) -> torch.Tensor:
    """parts: [I, K, M, H] each; lses: [I, K, M] each. Returns [R, K, M, H] float32."""
    lse, part = torch.cat(lses), torch.cat(parts)
    if calls.order is not None and calls.absent is not None:
        lse = lse.index_select(0, calls.order).masked_fill_(calls.absent, MASK_VALUE)
        part = part.index_select(0, calls.order)
    weights = merge_weights(lse.view(calls.num_partitions, -1, *lse.shape[1:]))
    weighted = part.reshape(*weights.shape, -1) * weights.unsqueeze(-1)
    merged = weighted[0]
    for index in range(1, calls.num_partitions):
        merged += weighted[index]
    return merged
