"""attention_row_multiple: which row padding makes eager attention batch-invariant on this machine.

Knows: what changes from pass to pass, and tries it. Does not know: models, or who keeps results.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.paged_attention.flash import MASK_VALUE, WIDTH_MULTIPLE, flash
from pilotfish.kernels.paged_attention.partitions import partition
from pilotfish.kernels.paged_attention.tiles import TILE_ROWS

CANDIDATES = (4, 8, 16, 32)
FULL = 128
RUNS = (
    *((1, 0), (1, 7), (2, 5), (3, 1), (3, 130), (4, 9), (5, 2), (6, 131), (7, 3), (8, 11), (15, 6)),
    *((16, 0), (16, 133), (33, 7), (64, 0)),
)
"""How many multiples of rows, and the first row: all that a last block of 32 rows can be left."""


def attention_row_multiple(num_heads: int, num_kv_heads: int, head_dim: int) -> int | None:
    """Return the smallest row multiple under which every row of attention keeps its bits.

    Only the torch backend needs it, and only where invariance is asked for. Runs the flash kernel
    on random rows, all at once, in runs of many lengths, with and without a mask, and folded,
    alone and beside other requests, in float32, as it is used: about a tenth of a second, so call
    it once a shape.
    Returns None when no multiple holds on this machine.
    """
    width = -(-head_dim // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    shape = (num_kv_heads, num_heads // num_kv_heads, width)
    for multiple in CANDIDATES:
        if all(_holds(multiple, index, shape) for index in (0, 2, 3)):
            return multiple
    return None


def _holds(multiple: int, index: int, shape: tuple[int, int, int]) -> bool:
    """Are the rows of every run the rows of the one long run? index: the partition tried."""
    num_kv_heads, group, width = shape
    start, end = partition(index)
    noise = torch.Generator().manual_seed(index)
    rows = torch.randn(TILE_ROWS, num_kv_heads, group, width, generator=noise)
    kv = torch.randn(3, end - start, 2, num_kv_heads, width, generator=noise)
    # Rows see more and more keys, from row FULL on all of them.
    hidden = torch.arange(end - start) * FULL // (end - start) > torch.arange(TILE_ROWS)[:, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, MASK_VALUE)
    k, v = kv[1].permute(1, 2, 0, 3).unsqueeze(2).expand(-1, -1, group, -1, -1)
    wanted, wanted_lse = flash(rows.permute(1, 2, 0, 3), k, v, mask, 0.25)
    for count, first in RUNS:
        last = first + min(count, (TILE_ROWS - first) // multiple) * multiple
        run = rows[first:last].permute(1, 2, 0, 3)
        masks: list[torch.Tensor | None] = [mask[first:last]]
        if first >= FULL:
            masks.append(None)
        for its_mask in masks:
            out, lse = flash(run, k, v, its_mask, 0.25)
            if not _same(out, wanted[:, :, first:last], lse, wanted_lse[:, :, first:last]):
                return False
    folded = rows[:multiple].permute(1, 0, 2, 3).reshape(1, num_kv_heads, -1, width)
    folded_mask = mask[:multiple].repeat_interleave(group, 0).expand(3, 1, -1, -1)
    q = torch.cat([folded.flip(2), folded, folded.flip(2)])
    k, v = kv.transpose(1, 3).unbind(2)
    for some in (slice(0, 3), slice(1, 2)):  # the middle one beside the others, and alone
        out, lse = flash(q[some], k[some], v[some], folded_mask[some], 0.25)
        middle = out.shape[0] // 2
        out = torch.unflatten(out[middle], 1, (multiple, group)).transpose(1, 2)
        lse = torch.unflatten(lse[middle], 1, (multiple, group)).transpose(1, 2)
        if not _same(out, wanted[:, :, :multiple], lse, wanted_lse[:, :, :multiple]):
            return False
    return True


def _same(
    out: torch.Tensor, wanted: torch.Tensor, lse: torch.Tensor, wanted_lse: torch.Tensor
) -> bool:
    return torch.equal(out, wanted) and torch.equal(lse, wanted_lse)
