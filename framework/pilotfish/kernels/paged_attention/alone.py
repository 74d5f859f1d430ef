"""A tile of one request's rows, computed alone; queries are read in place, never copied.

Knows: how to run what `tiles` laid out. Does not know: requests with few rows.
Letters as in the package, and: C keys in a partition, n rows of the tile.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention.flash import HIDDEN, flash, merge_weights
from pilotfish.kernels.paged_attention.gather import Gather
from pilotfish.kernels.paged_attention.tiles import Segment, Tile


def attend(
    q: torch.Tensor,
    cache_rows: torch.Tensor,
    tile: Tile,
    gathers: tuple[Gather, ...],
    *,
    scale: float,
    out: torch.Tensor,
) -> None:
    """q, out: [T', N, H]; cache_rows: [P*S, (2,) K, H']; gathers: one a part. Fills the tile.

    The kv heads stand in the place of the batch, and the query heads of a group share their keys.
    """
    heads = (cache_rows.shape[-2], q.shape[1] // cache_rows.shape[-2])
    q_TKGH = torch.unflatten(q, 1, heads)
    out_nKGH = torch.unflatten(out[tile.rows], 1, heads)
    lse_pnKG = q.new_full((len(tile.parts), *out_nKGH.shape[:3]), HIDDEN, dtype=torch.float32)
    done: list[tuple[int, Segment, torch.Tensor]] = []
    for index, (part, gather) in enumerate(zip(tile.parts, gathers, strict=True)):
        gather.fill(cache_rows)
        k_KGCH, v_KGCH = (
            x.transpose(0, 1).expand(-1, heads[1], -1, -1) for x in (gather.k, gather.v)
        )
        for segment in part.segments:
            q_KGnH = q_TKGH[segment.computed].permute(1, 2, 0, 3)
            result_KGnH, lse_KGn = flash(q_KGnH, k_KGCH, v_KGCH, segment.mask, scale)
            lse_pnKG[index, segment.rows] = lse_KGn.permute(2, 0, 1)[segment.wanted]
            done.append((index, segment, result_KGnH.permute(2, 0, 1, 3)[segment.wanted]))
    if len(done) == 1:
        out_nKGH.copy_(done[0][2])
        return
    weights, total = merge_weights(lse_pnKG)
    merged = torch.zeros(out_nKGH.shape, dtype=torch.float32)
    for index, segment, result_nKGH in done:
        merged[segment.rows] += result_nKGH.float() * weights[index, segment.rows, ..., None]
    out_nKGH.copy_(merged.div_(total.unsqueeze(-1)))
