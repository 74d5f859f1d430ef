"""A tile of one request's rows, computed alone; queries are read in place, never copied.

Knows: how to run what `tiles` laid out. Does not know: requests with few rows.
Letters as in the package, and: C keys in a partition, n rows of the tile.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention.flash import MASK_VALUE, flash, merge_weights
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
    """q: [T', N, H]; cache_rows: [P*S, (2,) K, H']; gathers: one a part.

    Fills the tile's rows of out, which is zeros: [T', N, V], the first V columns of each value.

    The kv heads stand in the place of the batch, and the query heads of a group share their keys.
    """
    heads = (cache_rows.shape[-2], q.shape[1] // cache_rows.shape[-2])
    q_TKGH = torch.unflatten(q, 1, heads)
    out_nKGH = torch.unflatten(out[tile.rows], 1, heads)
    lse_pnKG = q.new_full((len(tile.parts), *out_nKGH.shape[:3]), MASK_VALUE, dtype=torch.float32)
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
            wanted = result_KGnH.permute(2, 0, 1, 3)[segment.wanted]
            done.append((index, segment, wanted[..., : out.shape[2]]))
    if len(tile.parts) == 1:
        for _, segment, result_nKGH in done:
            out_nKGH[segment.rows] = result_nKGH
        return
    weights_pnKG1 = merge_weights(lse_pnKG).unsqueeze(-1)
    is_f32 = out.dtype == torch.float32
    merged = out_nKGH if is_f32 else torch.zeros(out_nKGH.shape, dtype=torch.float32)
    for index, segment, result_nKGH in done:
        place, weight_nKG1 = merged[segment.rows], weights_pnKG1[index, segment.rows]
        if index == 0:  # written, not added: these are the largest arrays of a prefill
            torch.mul(result_nKGH.float(), weight_nKG1, out=place)
        else:
            place += result_nKGH.float() * weight_nKG1
    if not is_f32:
        out_nKGH.copy_(merged)
