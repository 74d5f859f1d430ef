"""Tiles of one request's rows, for requests with many (prefill), and the calls each tile needs.

Knows: how rows meet the partitions. Does not know: heads, dtypes, other requests.
Letters as in the package, and: C keys in a partition. Ranges are half open.
"""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import torch

from pilotfish.kernels.paged_attention.flash import MASK_VALUE
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec, Range
from pilotfish.kernels.paged_attention.partitions import partition, partitions_of
from pilotfish.kernels.paged_attention.plan import AttentionPlan

TILE_ROWS = 512
"""Bounds the memory that partial results take; no row's bits depend on it."""


@attrs.frozen(kw_only=True)
class Segment:
    """Rows of a tile that meet a partition in one call.

    rows: counted from the tile's first. computed: the packed rows of the call: these rows and
    neighbours up to a full row multiple. wanted: where `rows` are among the computed ones.
    mask: [computed, C] float32, 0 or MASK_VALUE; None when every row sees every key.
    """

    rows: slice
    computed: slice
    wanted: slice
    mask: torch.Tensor | None


@attrs.frozen(kw_only=True)
class Part:
    """A partition: where its C keys lie, as [C] int64 rows of the cache, and who meets it."""

    slots: torch.Tensor
    segments: tuple[Segment, ...]


@attrs.frozen(kw_only=True)
class Tile:
    """rows: packed rows of one request. parts: the partitions they see, in order."""

    rows: slice
    parts: tuple[Part, ...]


def make_tiles(plan: AttentionPlan, request: int, mask_spec: MaskSpec) -> tuple[Tile, ...]:
    """Cuts a request's rows into tiles and says what each must compute."""
    start = plan.offsets[request]
    end = start + plan.row_counts[request]
    return tuple(
        _make_tile(plan, request, (row, min(row + TILE_ROWS, end)), mask_spec)
        for row in range(start, end, TILE_ROWS)
    )


def _make_tile(plan: AttentionPlan, request: int, rows: Range, mask_spec: MaskSpec) -> Tile:
    shift = plan.lengths[request] - plan.offsets[request]
    positions = (rows[0] + shift, rows[1] + shift)
    num_keys = plan.num_keys[request] if mask_spec.mode == "block" else positions[1]
    low, high = mask_spec.visible_keys(positions, num_keys)
    parts = []
    for index in partitions_of((low, high)):
        keys = partition(index)
        slots = plan.slots(request, np.clip(np.arange(*keys), low, high - 1))
        some, full = mask_spec.rows_that_see(keys, num_keys)
        cuts = sorted(max(positions[0], min(p, positions[1])) for p in (*some, *full))
        segments = []
        for start, end in itertools.pairwise(cuts):
            if start < end:
                computed = _widen((start - shift, end - shift), plan)
                masked = start < full[0] or end > full[1]
                segments.append(
                    Segment(
                        rows=slice(start - positions[0], end - positions[0]),
                        computed=slice(*computed),
                        wanted=slice(start - shift - computed[0], end - shift - computed[0]),
                        mask=_mask(computed, shift, keys, num_keys, mask_spec) if masked else None,
                    )
                )
        parts.append(Part(slots=torch.from_numpy(slots), segments=tuple(segments)))
    return Tile(rows=slice(*rows), parts=tuple(parts))


def _widen(rows: Range, plan: AttentionPlan) -> Range:
    """Packed rows around `rows`, a row multiple in number, inside the padded pass."""
    multiple = plan.row_multiple
    size = -(-(rows[1] - rows[0]) // multiple) * multiple
    start = min(rows[0], plan.num_padded_rows - size)
    return start, start + size


def _mask(
    computed: Range, shift: int, keys: Range, num_keys: int, mask_spec: MaskSpec
) -> torch.Tensor:
    """Returns [computed, C] float32, MASK_VALUE where a row may not see a key."""
    p = np.arange(computed[0] + shift, computed[1] + shift)[:, None]
    hidden = mask_spec.hidden(p, np.arange(*keys), np.array(num_keys))
    return torch.from_numpy(np.where(hidden, np.float32(MASK_VALUE), np.float32(0)))
