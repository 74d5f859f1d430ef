"""KVCacheInputs: where each request's rows lie in the caches, for one pass over one paged cache.

Knows: tensors and host copies of lengths. Does not know: who owns which page or slot.
Axis letters: B requests, T packed tokens, P pages, S tokens in a page, W pages of the longest
request.
"""

from __future__ import annotations

from typing import Self

import attrs
import torch

from pilotfish.records import TensorRecord


@attrs.frozen(kw_only=True)
class SlotInputs(TensorRecord):
    """One pass's view of a cache without pages; each such cache brings its own subclass."""

    def next_row(self) -> Self:
        """The view of a pass of one row per request, after the rows of this one."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class KVCacheInputs(TensorRecord):
    """One pass's view of a paged cache.

    blocks: per layer [P, S, *row_shape], the cache's memory; row_shape is [2, K, H] for
    keys/values.
    lookup_table: [B, W] int32, page ids in order; entries past a request's pages are 0.
    page_counts: pages of each request, on the host; empty: all of its row of the table.
    cache_lengths: [B] int32, committed rows before this pass.
    write_slots: [T] int64, page * S + offset of each packed row of this pass.
    page_size_tokens: S.
    lengths, row_counts: the same on the host: committed rows, and rows of this pass, per request.
    slots: views of the caches without pages that passes over this one read, in their order.
    """

    blocks: tuple[torch.Tensor, ...]
    lookup_table: torch.Tensor
    cache_lengths: torch.Tensor
    write_slots: torch.Tensor
    page_size_tokens: int
    lengths: tuple[int, ...]
    row_counts: tuple[int, ...]
    page_counts: tuple[int, ...] = ()
    slots: tuple[SlotInputs, ...] = ()

    @property
    def capacities(self) -> tuple[int, ...]:
        """Rows that each request's pages hold."""
        counts = self.page_counts or (self.lookup_table.shape[1],) * len(self.lengths)
        return tuple(count * self.page_size_tokens for count in counts)
