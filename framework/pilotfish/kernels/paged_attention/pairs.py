"""Pairs of a request and a key partition, for requests that are computed together.

Knows: which pairs are needed, their keys and masks. Does not know: heads or how results are merged.
Letters as in `gqa_packing`, and: I pairs of one call, C keys in a partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import torch

from pilotfish.kernels.paged_attention.flash import MASK_VALUE
from pilotfish.kernels.paged_attention.gqa_packing import GQAPacking
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.partitions import partition, partitions_of
from pilotfish.kernels.paged_attention.plan import AttentionPlan

CALL_KEYS = 4096
"""About how many keys one call gathers: bounds memory, and keeps what was gathered in the cache."""


@attrs.frozen(kw_only=True)
class Call:
    """Pairs of one partition size that are computed at once.

    requests: [I] int64, or None when they are 0..R in order. slots: [I*C] int64 rows of the cache.
    mask: [I, 1, M, C] float32, 0 or MASK_VALUE.
    """

    requests: torch.Tensor | None
    slots: torch.Tensor
    mask: torch.Tensor


@attrs.frozen(kw_only=True)
class Calls:
    """All calls of one MaskSpec, and how their pairs line up for the merge.

    order: [partitions*R] int64, the pair at (partition, request); None when pairs already lie so.
    absent: [partitions*R, 1, 1] bool, where there is no such pair and `order` points anywhere.
    """

    calls: tuple[Call, ...]
    num_partitions: int
    order: torch.Tensor | None
    absent: torch.Tensor | None


def make_calls(
    plan: AttentionPlan, requests: Sequence[int], packing: GQAPacking, mask_spec: MaskSpec
) -> Calls:
    """Pairs every request with the partitions that any of its rows sees."""
    seen = [
        partitions_of(mask_spec.visible_keys((plan.lengths[b], plan.num_keys[b]), plan.num_keys[b]))
        for b in requests
    ]
    span = range(min(r.start for r in seen), max(r.stop for r in seen))
    grid = [(index, r) for index in span for r in range(len(requests))]
    pairs = [(index, r) for index, r in grid if index in seen[r]]
    calls = tuple(_make_call(plan, requests, run, packing, mask_spec) for run in _runs(pairs))
    if len(pairs) == len(grid):
        return Calls(calls=calls, num_partitions=len(span), order=None, absent=None)
    place = {pair: i for i, pair in enumerate(pairs)}
    return Calls(
        calls=calls,
        num_partitions=len(span),
        order=torch.tensor([place.get(pair, 0) for pair in grid]),
        absent=torch.tensor([pair not in place for pair in grid])[:, None, None],
    )


def _runs(pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cuts pairs (partition, request), in order, into runs of one partition size."""
    run: list[tuple[int, int]] = []
    run_size = 0
    for index, request in pairs:
        start, end = partition(index)
        if run and (end - start != run_size or (len(run) + 1) * run_size > CALL_KEYS):
            yield run
            run = []
        run_size = end - start
        run.append((index, request))
    yield run


def _make_call(
    plan: AttentionPlan,
    requests: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    packing: GQAPacking,
    mask_spec: MaskSpec,
) -> Call:
    members = [requests[r] for _, r in pairs]
    num_keys = np.array([plan.num_keys[b] for b in members])[:, None]
    length = np.array([plan.lengths[b] for b in members])[:, None]
    start, end = partition(pairs[0][0])
    key_IC = np.array([partition(index)[0] for index, _ in pairs])[:, None] + np.arange(end - start)
    lowest = 0 if mask_spec.window is None else np.maximum(0, length - mask_spec.window + 1)
    slots = plan.slots(np.array(members)[:, None], np.clip(key_IC, lowest, num_keys - 1))
    p_IM = length + np.arange(packing.num_folded) // packing.group
    hidden = mask_spec.hidden(p_IM[:, :, None], key_IC[:, None, :], num_keys[:, :, None])
    mask = np.where(hidden, np.float32(MASK_VALUE), np.float32(0))[:, None]
    in_order = [r for _, r in pairs] == list(range(len(requests)))
    return Call(
        requests=None if in_order else torch.tensor([r for _, r in pairs]),
        slots=torch.from_numpy(slots.ravel()),
        mask=torch.from_numpy(mask),
    )
