"""Where the expanded form makes a pass's keys and values: pages of their own, numbered anew.

Knows: where requests' rows lie. Does not know: what is made of them, or how it is attended to.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.kernels.paged_attention import AttentionPlan


def made_pages(plan: AttentionPlan) -> tuple[torch.Tensor, AttentionPlan]:
    """Returns [P'] int64, the cache's pages that a pass reads, request after request, and the pass
    over them, numbered from 0. Nothing waits for the device.
    """
    size, width = plan.page_size_tokens, plan.lookup_table.shape[1]
    counts = [-(-num_keys // size) for num_keys in plan.num_keys]
    places = [b * width + i for b, count in enumerate(counts) for i in range(count)]
    table, first = [], 0
    for count in counts:
        table.append([first + min(i, max(count - 1, 0)) for i in range(max(counts))])
        first += count
    device = plan.lookup_table.device
    place = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
    pages = plan.lookup_table.flatten().index_select(0, place).long()
    numbered = torch.tensor(table, dtype=torch.int32).view(len(counts), -1)
    lookup_table = numbered.to(device, non_blocking=True)
    return pages, attrs.evolve(plan, lookup_table=lookup_table, memo={})
