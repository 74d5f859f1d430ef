"""paged_attention on the CPU by torch, where there is no native library.

Knows: how to run a `Layout`. Does not know: how rows and keys were cut; the README says why no
row's bits depend on it. Letters as in `layout`.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pilotfish.kernels.paged_attention import reference
from pilotfish.kernels.paged_attention.flash import MASK_VALUE, WIDTH_MULTIPLE, flash, merge
from pilotfish.kernels.paged_attention.layout import Batch, Call, Layout, make_layout
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan
from pilotfish.kernels.paged_attention.unseen import without_unseen


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    mask_spec: MaskSpec,
    *,
    value_width: int,
    invariant: bool,
) -> torch.Tensor:
    """Arguments and result as the public function.

    float16 is computed in float32, and so is bfloat16 where bits matter: the flash kernel chooses
    its 16-bit products by the number of rows, of requests and of threads. On another device than a
    CPU this is the reference: right, slow, and not invariant.
    """
    if q.device.type != "cpu":
        out = reference.paged_attention(q, cache, plan, scale, mask_spec)
        return out[..., :value_width].contiguous()
    (num_rows, num_heads, width), dtype = q.shape, q.dtype
    row_shape = (1, width) if cache.ndim == 3 else cache.shape[2:]
    cache_rows = cache.view(-1, *row_shape)
    layout = layout_of(plan, mask_spec, num_rows, num_heads, row_shape[-2])
    q_rows = _padded(q.flatten(0, 1), width + -width % WIDTH_MULTIPLE)
    if dtype == torch.float16 or (dtype == torch.bfloat16 and invariant):
        q_rows = q_rows.float()

    def attend() -> torch.Tensor:
        out = _attend(q_rows, cache_rows, plan, layout, scale)[:, :value_width]
        return out.index_select(0, layout.out_index).view(num_rows, num_heads, value_width)

    if not layout.batches:
        return q.new_zeros(num_rows, num_heads, value_width)
    return without_unseen(attend(), cache, plan, mask_spec, attend).to(dtype)


def layout_of(
    plan: AttentionPlan, mask_spec: MaskSpec, num_rows: int, num_heads: int, num_kv_heads: int
) -> Layout:
    """The pass's one layout of a kind of layer; see `make_layout`."""
    return plan.cached(make_layout, mask_spec, num_rows, num_heads, num_kv_heads)


def _attend(
    q_rows: torch.Tensor,
    cache_rows: torch.Tensor,
    plan: AttentionPlan,
    layout: Layout,
    scale: float,
) -> torch.Tensor:
    """q_rows: [T'*N, H]; cache_rows: [P*S, (2,) K, H']. Returns [rows of all batches, H]."""
    results = [
        _attend_batch(q_rows, cache_rows, plan, batch, scale).flatten(0, 2)
        for batch in layout.batches
    ]
    return results[0] if len(results) == 1 else torch.cat(results)


def _attend_batch(
    q_rows: torch.Tensor,
    cache_rows: torch.Tensor,
    plan: AttentionPlan,
    batch: Batch,
    scale: float,
) -> torch.Tensor:
    """Returns [R, K, M, H] of q's dtype."""
    num_tiles = batch.shape[0]
    q_RKMH = q_rows.index_select(0, batch.q_index).view(*batch.shape, -1)
    done = []
    for call in batch.calls:
        k, v = _keys_values(cache_rows, plan, call, q_rows)
        q_IKMH = q_RKMH if call.tiles is None else q_RKMH.index_select(0, call.tiles)
        done.append(flash(q_IKMH, k, v, call.mask, scale))
    if batch.num_partitions == len(done) == 1:
        return done[0][0]
    lse = torch.cat([lse_IKM for _, lse_IKM in done])
    if num_tiles == 1:
        parts = [part for part_IKMH, _ in done for part in torch.split(part_IKMH, 1)]
    else:
        part = torch.cat([part_IKMH for part_IKMH, _ in done])
        if batch.order is not None:
            part = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, 1)).index_select(0, batch.order)
            lse = functional.pad(lse, (0, 0, 0, 0, 0, 1), value=MASK_VALUE)
            lse = lse.index_select(0, batch.order)
        parts = list(torch.split(part, num_tiles))
    return merge(parts, lse.view(-1, *batch.shape)).to(q_rows.dtype)


def _keys_values(
    cache_rows: torch.Tensor, plan: AttentionPlan, call: Call, q_rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [I, K, C, H] of q's dtype, until the next call; shared rows are both."""
    rows = plan.scratch((len(call.slots), *cache_rows.shape[1:]), cache_rows.dtype)
    torch.index_select(cache_rows, 0, call.slots, out=rows)
    rows = _padded(rows.to(q_rows.dtype), q_rows.shape[1])
    runs = rows.view(call.num_pairs, -1, *rows.shape[1:])
    if runs.ndim == 4:
        runs = runs.transpose(1, 2)
        return runs, runs
    k, v = runs.transpose(1, 3).unbind(2)
    return k, v


def _padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    short = width - rows.shape[-1]
    return functional.pad(rows, (0, short)) if short else rows
