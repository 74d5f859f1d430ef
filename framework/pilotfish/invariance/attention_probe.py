"""attention_row_multiple: which row padding makes eager attention batch-invariant on this machine.

Knows: what changes from pass to pass, and tries it. Does not know: models, or who keeps results.
Letters as in `paged_attention.layout`: K kv heads, M packed rows, C keys of a partition, H width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention.flash import (
    MASK_VALUE,
    TILE_ROWS,
    WIDTH_MULTIPLE,
    flash,
    partition,
)

CANDIDATES = (4, 8, 16, 32)
FULL = 128
RUNS = (
    *((1, 0), (1, 7), (2, 5), (3, 1), (3, 130), (4, 9), (5, 2), (6, 131), (7, 3), (8, 11), (15, 6)),
    *((16, 0), (16, 133), (33, 7), (64, 0)),
)
"""How many multiples of rows, and the first row: all that a last block of 32 rows can be left."""


def attention_row_multiple(num_kv_heads: int, head_dim: int) -> int | None:
    """Return the smallest row multiple under which every row of attention keeps its bits.

    Only the torch backend needs it, and only where invariance is asked for. Runs the flash kernel
    on random rows, all at once, in runs of many lengths, with and without a mask, alone and beside
    other requests, in float32, as it is used: about a tenth of a second, so call it once a shape.
    Returns None when no multiple holds on this machine.
    """
    width = -(-head_dim // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    for multiple in CANDIDATES:
        if all(_holds(multiple, index, num_kv_heads, width) for index in (0, 2, 3)):
            return multiple
    return None


def _holds(multiple: int, index: int, num_kv_heads: int, width: int) -> bool:
    """Are the rows of every run the rows of the one long run? index: the partition tried."""
    num_keys = partition(index)[1] - partition(index)[0]
    noise = torch.Generator().manual_seed(index)
    q_KMH = torch.randn(num_kv_heads, TILE_ROWS, width, generator=noise)
    kv = torch.randn(3, num_keys, 2, num_kv_heads, width, generator=noise)
    k, v = kv.transpose(1, 3).unbind(2)  # of three requests
    # Rows see more and more keys, from row FULL on all of them.
    hidden = torch.arange(num_keys) * FULL // num_keys > torch.arange(TILE_ROWS)[:, None]
    mask_MC = torch.zeros(hidden.shape).masked_fill_(hidden, MASK_VALUE)
    wanted = flash(q_KMH[None], k[1:2], v[1:2], mask_MC[None, None], 0.25)
    for count, first in RUNS:
        run = slice(first, first + min(count, (TILE_ROWS - first) // multiple) * multiple)
        q = q_KMH[:, run]
        masks = [mask_MC[run].expand(3, 1, -1, -1), *([None] if first >= FULL else [])]
        for mask in masks:
            alone = None if mask is None else mask[:1]
            beside = flash(torch.stack([q.flip(1), q, q.flip(1)]), k, v, mask, 0.25)
            for found, place in ((flash(q[None], k[1:2], v[1:2], alone, 0.25), 0), (beside, 1)):
                pairs = zip(found, wanted, strict=True)
                if not all(torch.equal(one[place], all_[0][:, run]) for one, all_ in pairs):
                    return False
    return True
