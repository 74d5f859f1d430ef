"""The expanded form: keys and values of the pass's requests, made into pages of their own.

Knows: where requests' rows lie. Does not know: masks or partitions, which are `paged_attention`'s.
Letters as in the package, and: H width of a made key or value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import AttentionPlan, paged_attention
from pilotfish_kimi_k25.kernels.head_linear import head_linear

if TYPE_CHECKING:
    from pilotfish_kimi_k25.kernels.mla_attention import HeadWeights


@attrs.frozen(kw_only=True, eq=False)
class MadePages:
    """pages: [P'] int64, the cache's pages that the pass reads, request after request.

    plan: the pass over them, numbered from 0.
    """

    pages: torch.Tensor
    plan: AttentionPlan

    @classmethod
    def make(cls, plan: AttentionPlan) -> MadePages:
        """Numbers the pages anew; nothing waits for the device."""
        size, width = plan.page_size_tokens, plan.lookup_table.shape[1]
        counts = [-(-num_keys // size) for num_keys in plan.num_keys]
        places = [b * width + i for b, count in enumerate(counts) for i in range(count)]
        table, first = [], 0
        for count in counts:
            table.append([first + min(i, max(count - 1, 0)) for i in range(max(counts))])
            first += count
        device = plan.lookup_table.device
        place = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
        numbered = torch.tensor(table, dtype=torch.int32).view(len(counts), -1)
        return cls(
            pages=plan.lookup_table.flatten().index_select(0, place).long(),
            plan=attrs.evolve(plan, lookup_table=numbered.to(device, non_blocking=True), memo={}),
        )


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    weights: HeadWeights,
    *,
    scale: float,
    backend: KernelBackend,
) -> torch.Tensor:
    """Arguments and result as `attend_expanded`."""
    made = plan.recall("made pages", lambda: MadePages.make(plan))
    value_width, latent_width = weights.up_value.shape[1:]
    key_width = q.shape[2]
    width = max(key_width, value_width)
    rows_JR = cache.index_select(0, made.pages).flatten(0, 1)
    latent_JNC = rows_JR[:, None, :latent_width].expand(-1, q.shape[1], -1)
    pages = cache.new_zeros((len(made.pages), plan.page_size_tokens, 2, q.shape[1], width))
    kv_J2NH = pages.flatten(0, 1)
    plain = weights.up_key.shape[1]
    kv_J2NH[:, 0, :, :plain] = head_linear(latent_JNC, weights.up_key, backend=backend)
    kv_J2NH[:, 0, :, plain:key_width] = rows_JR[:, None, latent_width:]
    kv_J2NH[:, 1, :, :value_width] = head_linear(latent_JNC, weights.up_value, backend=backend)
    if width > key_width:
        q = torch.nn.functional.pad(q, (0, width - key_width))
    out = paged_attention(q, pages, made.plan, scale=scale, backend=backend)
    return out[..., :value_width]
