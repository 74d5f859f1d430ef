"""DecoderInputs: the inputs of a decoder-only text model, and how they are packed and advanced.

Knows: ragged rows and page tables. Does not know: networks.
Axis letters: B requests, T packed tokens, S tokens in a page, W pages of the longest request.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, TypeVar

import attrs
import torch

from pilotfish.batch import RaggedBatch, RequestContext, check_ragged
from pilotfish.parallel.group import Group
from pilotfish.protocols import ModelInputs
from pilotfish.state import KVCacheInputs


@attrs.frozen(kw_only=True)
class DecoderInputs(ModelInputs):
    """What `execute` of a decoder needs.

    rope_lengths: [B] int64, m of config/rope.py, where angles depend on it; else None.
    """

    rope_lengths: torch.Tensor | None = None

    def __attrs_post_init__(self) -> None:
        if self.data_parallel_splits is None:
            check_ragged(self.tokens, self.input_row_offsets, self.return_n_logits)
        else:
            super().__attrs_post_init__()
        kv = self.kv_cache_inputs
        if kv is not None and sum(kv.row_counts) != self.tokens.shape[0]:
            raise ValueError(
                f"kv_cache_inputs is for {list(kv.row_counts)} rows and tokens has "
                f"{self.tokens.shape[0]}; wanted inputs of one batch"
            )


AnyInputs = TypeVar("AnyInputs", bound=ModelInputs)


@attrs.frozen
class PackedBatch:
    """The requests that a model packs, and how many each replica has; see `ModelInputs`."""

    contexts: Sequence[RequestContext]
    splits: torch.Tensor | None

    @classmethod
    def of(cls, replica_batches: Sequence[Sequence[RequestContext]], data: Group) -> PackedBatch:
        """Of the one batch, or of one for each replica. data: which of them the model is.

        Raises ValueError for another number of batches than there are replicas.
        """
        count = len(replica_batches)
        if count == 1:
            return cls(replica_batches[0], None)
        if not count or (count != data.size and not data.is_alone):
            wanted = f"1 or {data.size}" if data.size > 1 else "1 or more"
            raise ValueError(
                f"got {count} replica batches; wanted {wanted}: the requests of this model's, or "
                "those of every replica"
            )
        splits = [0, *accumulate(map(len, replica_batches))]
        own = [*chain(*replica_batches)] if data.is_alone else replica_batches[data.rank]
        return cls(own, torch.tensor(splits, dtype=torch.int64))


def initial_inputs(
    inputs_class: type[AnyInputs],
    batch: Sequence[RequestContext],
    kv_cache_inputs: KVCacheInputs | None,
    return_n_logits: int | Sequence[int],
    *,
    device: torch.device,
    with_lengths: bool = False,
    **fields: Any,
) -> AnyInputs:
    """Packs the scheduled rows of each request.

    with_lengths: whether angles depend on prompt lengths. fields: what the subclass adds.
    """
    ragged = RaggedBatch.pack(map(attrgetter("scheduled_tokens"), batch), device)
    wanted = [return_n_logits] if isinstance(return_n_logits, int) else list(return_n_logits)
    if with_lengths:
        started = [context.num_started_tokens for context in batch]
        fields["rope_lengths"] = torch.tensor(started, dtype=torch.int64, device=device)
    return inputs_class(
        tokens=ragged.tokens,
        input_row_offsets=ragged.input_row_offsets,
        return_n_logits=torch.tensor(wanted, dtype=torch.int64),
        kv_cache_inputs=kv_cache_inputs,
        **fields,
    )


def next_inputs(next_tokens: torch.Tensor, previous: AnyInputs) -> AnyInputs:
    """One more row per request, after all rows of `previous`.

    next_tokens: [B] int64. The pages of the new rows must have been reserved before `previous` was
    made: its page tables are used as they are. Raises ValueError when they end before a new row.
    """
    num_requests = previous.input_row_offsets.shape[0] - 1
    kv = previous.kv_cache_inputs
    return attrs.evolve(
        previous,
        tokens=next_tokens,
        input_row_offsets=torch.arange(
            num_requests + 1, dtype=torch.int32, device=next_tokens.device
        ),
        return_n_logits=torch.ones(1, dtype=torch.int64),
        kv_cache_inputs=None if kv is None else next_row(kv, previous.input_row_offsets),
    )


def next_row(kv: KVCacheInputs, input_row_offsets: torch.Tensor) -> KVCacheInputs:
    """The view of a pass of one row per request, after the rows of `kv` are committed."""
    lengths = tuple(a + b for a, b in zip(kv.lengths, kv.row_counts, strict=True))
    for length, room in zip(lengths, kv.capacities, strict=True):
        if length >= room:
            raise ValueError(
                f"the next row of a request is row {length}, and its page table ends at {room}; "
                "wanted a page for it: reserve the row before asking for the next inputs"
            )
    cache_lengths = kv.cache_lengths + input_row_offsets.diff()
    page = (cache_lengths // kv.page_size_tokens).unsqueeze(1).long()
    page_ids = kv.lookup_table.gather(1, page).squeeze(1).long()
    return attrs.evolve(
        kv,
        cache_lengths=cache_lengths,
        write_slots=page_ids * kv.page_size_tokens + cache_lengths % kv.page_size_tokens,
        lengths=lengths,
        row_counts=(1,) * len(lengths),
        slots=tuple(view.next_row() for view in kv.slots),
    )
