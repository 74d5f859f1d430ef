"""AttentionPlan: one pass's lengths, rows and pages, shared by all layers.

Knows: host lengths, and tensors to look pages up. Does not know: masks, heads or keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import torch

from pilotfish.kernels.paged_attention.mask_spec import Ints, MaskSpec

if TYPE_CHECKING:
    from pilotfish.kernels.backend import KernelBackend
    from pilotfish.state import KVCacheInputs

Made = TypeVar("Made")


@attrs.frozen(kw_only=True)
class AttentionPlan:
    """What attention must know of a pass; made by `plan_attention`.

    lookup_table: [B, W] int32, page ids in order. cache_lengths: [B] int32.
    input_row_offsets: [B+1] int32. lengths, row_counts, num_keys: per request on the host:
    committed rows, rows of this pass, and their sum. offsets: where each request's rows begin;
    num_rows: T. row_multiple: eager attention computes rows in groups of this size.
    memo: what kinds of layers have of the pass, made for the first of a kind.
    """

    lookup_table: torch.Tensor
    cache_lengths: torch.Tensor
    input_row_offsets: torch.Tensor
    page_size_tokens: int
    lengths: tuple[int, ...]
    row_counts: tuple[int, ...]
    num_keys: tuple[int, ...]
    offsets: tuple[int, ...]
    num_rows: int
    row_multiple: int
    memo: dict[Hashable, Any] = attrs.field(factory=dict, eq=False, repr=False)

    def cached(self, make: Callable[..., Made], *args: Hashable) -> Made:
        """`make(self, *args)`, which is called once: later layers of the pass get the same."""
        key = (make, *args)
        found: Made | None = self.memo.get(key)
        if found is None:
            found = self.memo[key] = make(self, *args)
        return found

    def mask_spec(self, window: int | None, mode: Literal["causal", "block"]) -> MaskSpec:
        """The one MaskSpec of this window and mode: equal ones would be compared in every layer."""
        found: MaskSpec | None = self.memo.get((window, mode))
        if found is None:
            found = self.memo[window, mode] = MaskSpec(window, mode)
        return found

    def scratch(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory, the same for every call with this shape[1:]; it grows in shape[0].

        What one layer wrote is still in the processor's cache when the next one writes there.
        """
        key = ("scratch", shape[1:], dtype)
        held: torch.Tensor | None = self.memo.get(key)
        if held is None or held.shape[0] < shape[0]:
            held = self.memo[key] = torch.empty(shape, dtype=dtype)
        return held[: shape[0]]

    def slots(self, request: Ints | int, key: Ints) -> Ints:
        """Where keys lie, page * S + offset. On the host; the arrays broadcast."""
        size, table = self.page_size_tokens, self.lookup_table.numpy()
        found: Ints = table[request, key // size].astype("int64") * size + key % size
        return found


def plan_attention(
    kv: KVCacheInputs,
    input_row_offsets: torch.Tensor,
    *,
    backend: KernelBackend,
    row_multiple: int | None = None,
) -> AttentionPlan:
    """Return what every layer of one pass shares: lengths, rows and page lookups.

    kv: one cache's view of the pass; its host lengths are read, its tensors are not synchronised.
    input_row_offsets: [B+1] int32, request b owns rows offsets[b] to offsets[b+1].
    row_multiple: what `attention_row_multiple` found for this machine; None means 4.
    Raises ValueError when lengths, rows and pages do not fit together.
    """
    del backend
    num_requests, num_pages = kv.lookup_table.shape
    if len(kv.lengths) != num_requests or len(kv.row_counts) != num_requests:
        raise ValueError(
            f"{len(kv.lengths)} lengths and {len(kv.row_counts)} row counts for {num_requests} "
            "requests in the lookup table; wanted one of each per request"
        )
    offsets, num_keys, num_rows = [], [], 0
    for length, count in zip(kv.lengths, kv.row_counts, strict=True):
        if length + count > num_pages * kv.page_size_tokens:
            raise ValueError(
                f"a request has {length} + {count} keys and {num_pages} pages of "
                f"{kv.page_size_tokens}; wanted a page for every key: reserve before the pass"
            )
        offsets.append(num_rows)
        num_keys.append(length + count)
        num_rows += count
    return AttentionPlan(
        lookup_table=kv.lookup_table,
        cache_lengths=kv.cache_lengths,
        input_row_offsets=input_row_offsets,
        page_size_tokens=kv.page_size_tokens,
        lengths=kv.lengths,
        row_counts=kv.row_counts,
        num_keys=tuple(num_keys),
        offsets=tuple(offsets),
        num_rows=num_rows,
        row_multiple=row_multiple or 4,
    )
