"""Layout: which flash calls compute a pass, on torch; one for all layers of one kind.

Knows: how rows and heads are packed, and which partitions of keys meet them. Does not know: any
number in q or the cache. The README shows one with numbers.
Letters as in the package, and: R tiles that are computed together; M packed rows of a tile, row i
and head g of a group at i * G + g; I pairs of a partition and a tile; C keys of a partition.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import attrs
import numpy as np
import torch

from pilotfish.kernels.paged_attention.flash import (
    MASK_VALUE,
    TILE_ROWS,
    partition,
    partitions_of,
)
from pilotfish.kernels.paged_attention.mask_spec import Ints, MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan

FEW_ROWS, FEW_PACKED_ROWS = 16, 64
"""A request with at most so many rows, or rows times G, is computed together with others."""

CALL_KEYS = 4096
"""About how many keys one call gathers: bounds memory, and keeps what was gathered in the cache."""


class Tile(NamedTuple):
    """Rows of one request, no more than one call may have.

    row, position: of the first one, in the pass and in its request.
    low, high: from the first to the last key that any of them sees. num_keys: keys that exist.
    """

    request: int
    row: int
    position: int
    num_rows: int
    low: int
    high: int
    num_keys: int


@attrs.frozen(eq=False)
class Call:
    """I pairs of a partition, all of one size, and a tile.

    tiles: [I] int64, or None when they are 0..R in order. slots: [I*C] int64 rows of the cache.
    mask: [I, 1, M, C] float32, 0 or MASK_VALUE; None where every row sees every key.
    """

    num_pairs: int
    tiles: torch.Tensor | None
    slots: torch.Tensor
    mask: torch.Tensor | None


@attrs.frozen(eq=False)
class Batch:
    """Tiles that are computed together: shape is (R, K, M).

    q_index: [R*K*M] int64 rows of q as [T'*N]; padding, up to the row multiple, reads row 0.
    num_partitions: from the first to the last that any tile sees.
    order: [num_partitions * R] int64, the pair of each partition and tile, or the number of pairs
    where there is none; None where pairs lie so.
    """

    shape: tuple[int, int, int]
    q_index: torch.Tensor
    calls: tuple[Call, ...]
    num_partitions: int
    order: torch.Tensor | None


@attrs.frozen(eq=False)
class Layout:
    """out_index: [T'*N] int64 rows of the batches' results, which lie one after the other."""

    batches: tuple[Batch, ...]
    out_index: torch.Tensor


def make_layout(
    plan: AttentionPlan, mask_spec: MaskSpec, num_rows: int, num_heads: int, num_kv_heads: int
) -> Layout:
    """num_rows: T'. Rows past T read the first result, whatever that is."""
    group, num_results = num_heads // num_kv_heads, 0
    kv_head_N, head_N = np.divmod(np.arange(num_heads), group)
    q_rows_TN = np.arange(num_rows * num_heads).reshape(-1, num_heads)
    out_index_TN = np.zeros_like(q_rows_TN)
    batches = []
    for tiles in _tiles(plan, mask_spec, group):
        longest, multiple = max(tile.num_rows for tile in tiles), plan.row_multiple
        shape = len(tiles), num_kv_heads, -(-longest * group // multiple) * multiple
        q_index = np.zeros(shape, dtype=np.int64).ravel()
        for r, tile in enumerate(tiles):
            # Where row i and head n of the tile lie in [R, K, M]; the two indices are inverse.
            packed_iN = (r * num_kv_heads + kv_head_N) * shape[2] + head_N
            packed_iN = packed_iN + group * np.arange(tile.num_rows)[:, None]
            rows = slice(tile.row, tile.row + tile.num_rows)
            q_index[packed_iN] = q_rows_TN[rows]
            out_index_TN[rows] = num_results + packed_iN
        num_results += len(q_index)
        row_M = np.arange(shape[2]) // group
        batches.append(
            Batch(shape, torch.from_numpy(q_index), *_calls(plan, mask_spec, tiles, row_M))
        )
    return Layout(tuple(batches), torch.from_numpy(out_index_TN.ravel()))


def _tiles(plan: AttentionPlan, mask_spec: MaskSpec, group: int) -> Iterator[Sequence[Tile]]:
    """Requests with few rows (decode, verify) together; those with many (prefill) tile by tile.

    Tiles begin at multiples of a power of two, as partitions do: so fewer keys are masked.
    """
    size = 1 << max(1, TILE_ROWS // group).bit_length() - 1
    few = min(size, max(FEW_ROWS, FEW_PACKED_ROWS // group, plan.row_multiple))
    together = []
    for b, (length, count) in enumerate(zip(plan.lengths, plan.row_counts, strict=True)):
        start, end = length, length + count
        while start < end:
            stop = end if count <= few else min(end, (start // size + 1) * size)
            num_keys = stop if mask_spec.mode == "causal" else end
            seen = mask_spec.visible_keys((start, stop), num_keys)
            row = plan.offsets[b] + start - length
            tile = Tile(b, row, start, stop - start, *seen, num_keys)
            if count > few:
                yield (tile,)
            else:
                together.append(tile)
            start = stop
    if together:
        yield together


def _calls(
    plan: AttentionPlan, mask_spec: MaskSpec, tiles: Sequence[Tile], row_M: Ints
) -> tuple[tuple[Call, ...], int, torch.Tensor | None]:
    """calls, num_partitions and order of a batch; row_M: each packed row's row of its tile."""
    seen = [partitions_of((tile.low, tile.high)) for tile in tiles]
    first, last = min(r.start for r in seen), max(r.stop for r in seen)
    grid = [(index, r) for index in range(first, last) for r in range(len(tiles))]
    pairs = [(index, r) for index, r in grid if index in seen[r]]
    at = {pair: i for i, pair in enumerate(pairs)}
    order = torch.tensor([at.get(pair, len(pairs)) for pair in grid])

    def kind(pair: tuple[int, int]) -> tuple[int, bool]:
        """C, and whether rows of the pair need a mask; where tiles share a call, all have one."""
        keys, tile = partition(pair[0]), tiles[pair[1]]
        _, full = mask_spec.rows_that_see(keys, tile.num_keys)
        sees_all = full[0] <= tile.position and tile.position + tile.num_rows <= full[1]
        return keys[1] - keys[0], len(tiles) > 1 or not sees_all

    calls = []
    for (num_keys, is_masked), run in itertools.groupby(pairs, kind):
        some, most = list(run), CALL_KEYS // num_keys
        for i in range(0, len(some), most):
            indices, r_I = zip(*some[i : i + most], strict=True)
            start_I = np.array([partition(index)[0] for index in indices])
            slots, mask = _slots_and_mask(
                plan,
                mask_spec,
                [tiles[r] for r in r_I],
                start_I[:, None] + np.arange(num_keys),
                row_M if is_masked else None,
            )
            in_order = r_I == tuple(range(len(tiles)))
            calls.append(Call(len(r_I), None if in_order else torch.tensor(r_I), slots, mask))
    return tuple(calls), last - first, None if len(pairs) == len(grid) else order


def _slots_and_mask(
    plan: AttentionPlan,
    mask_spec: MaskSpec,
    tiles: Sequence[Tile],
    key_IC: Ints,
    row_M: Ints | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of a call's pairs; tiles: the tile of each. row_M: None where no mask is needed."""
    request, _, position, _, low, high, num_keys = np.array(tiles).T[..., None]  # [I, 1] each
    # A partition may reach past what a tile sees: there stands another key, which it does see.
    slots = torch.from_numpy(plan.slots(request, np.clip(key_IC, low, high - 1)).ravel())
    if row_M is None:
        return slots, None
    # Padding is masked as the rows that would follow.
    p_IM = position + row_M
    hidden_IMC = mask_spec.hidden(p_IM[:, :, None], key_IC[:, None], num_keys[..., None])
    mask_IMC = np.where(hidden_IMC, np.float32(MASK_VALUE), np.float32(0))
    return slots, torch.from_numpy(mask_IMC[:, None])
