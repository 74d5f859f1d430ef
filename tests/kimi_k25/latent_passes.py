"""Passes over latent rows in pages, whose every row that nobody may read is NaN.

Knows: how requests become pages and a plan. Does not know: what attention should give.
Letters: T packed tokens, N heads, C width of the latent, R with the turned part, Q and V a head's
other widths.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import torch

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import AttentionPlan, plan_attention
from pilotfish.state import KVCacheInputs
from pilotfish_kimi_k25.kernels import head_linear as head_linear_package
from pilotfish_kimi_k25.kernels import mla_attention
from pilotfish_kimi_k25.kernels.mla_attention import HeadWeights, reference

TORCH, TRITON = KernelBackend("torch"), KernelBackend("triton")

attend_absorbed = placed(mla_attention.attend_absorbed)
attend_expanded = placed(mla_attention.attend_expanded)
head_linear = placed(head_linear_package.head_linear)


@attrs.frozen
class Widths:
    """N, C, R - C, Q and V."""

    heads: int
    latent: int
    rope_part: int
    key: int
    value: int

    @property
    def row(self) -> int:
        return self.latent + self.rope_part


SMALL, ODD, MANY = Widths(4, 24, 8, 12, 10), Widths(3, 20, 6, 9, 31), Widths(40, 48, 16, 16, 16)


@attrs.frozen(eq=False)
class Rows:
    """A request: q [n, N, Q + R - C] and rows [n, R] of all positions; start: first computed."""

    q: torch.Tensor
    rows: torch.Tensor
    start: int

    @property
    def count(self) -> int:
        return len(self.q) - self.start

    @classmethod
    def draw(
        cls, start: int, count: int, widths: Widths, dtype: torch.dtype, seed: int = 0
    ) -> Rows:
        noise = torch.Generator().manual_seed(seed)
        length = start + count
        q = torch.randn(length, widths.heads, widths.key + widths.rope_part, generator=noise)
        rows = torch.randn(length, widths.row, generator=noise)
        return cls((2 * q).to(dtype), rows.to(dtype), start)


@attrs.frozen(eq=False)
class LatentPass:
    """Everything that both forms take."""

    q: torch.Tensor
    cache: torch.Tensor
    plan: AttentionPlan


def weights(widths: Widths, dtype: torch.dtype) -> HeadWeights:
    noise = torch.Generator().manual_seed(7)
    scale = widths.latent**-0.5
    shape = widths.heads, widths.key + widths.value, widths.latent
    both = (scale * torch.randn(shape, generator=noise)).to(dtype)
    return HeadWeights(up_key=both[:, : widths.key], up_value=both[:, widths.key :])


def make_pass(
    requests: Sequence[Rows],
    *,
    page_size: int = 16,
    seed: int = 0,
    padding: int = 0,
    backend: KernelBackend = TORCH,
) -> LatentPass:
    """Scatters the requests over shuffled pages."""
    counts = [-(-len(r.rows) // page_size) for r in requests]
    pages = list(range(sum(counts) + 3))
    random.Random(seed).shuffle(pages)
    table = torch.zeros(len(requests), max(counts) + 1, dtype=torch.int32)
    width, dtype = requests[0].rows.shape[1], requests[0].rows.dtype
    cache = torch.full((len(pages), page_size, width), torch.nan, dtype=dtype)
    write_slots: list[int] = []
    for b, r in enumerate(requests):
        own = [pages.pop() for _ in range(counts[b])]
        table[b, : len(own)] = torch.tensor(own, dtype=torch.int32)
        slots = [own[j // page_size] * page_size + j % page_size for j in range(len(r.rows))]
        cache.flatten(0, 1)[slots] = r.rows
        write_slots += slots[r.start :]
    offsets = torch.tensor([0, *(r.count for r in requests)]).cumsum(0).int()
    inputs = KVCacheInputs(
        blocks=(cache,),
        lookup_table=table,
        cache_lengths=torch.tensor([r.start for r in requests], dtype=torch.int32),
        write_slots=torch.tensor(write_slots, dtype=torch.int64),
        page_size_tokens=page_size,
        lengths=tuple(r.start for r in requests),
        row_counts=tuple(r.count for r in requests),
    )
    q = torch.cat([r.q[r.start :] for r in requests])
    q = torch.cat([q, torch.full((padding, *q.shape[1:]), torch.nan, dtype=dtype)])
    return LatentPass(q, cache, plan_attention(inputs, offsets, backend=backend))


def absorbed(
    made: LatentPass, heads: HeadWeights, scale: float, backend: KernelBackend
) -> torch.Tensor:
    """The whole of the absorbed form, from a head's queries to its values: [T', N, V]."""
    key_width, latent = heads.up_key.shape[1:]
    plain, rope_part = made.q.split([key_width, made.q.shape[2] - key_width], dim=2)
    q = torch.cat((head_linear(plain, heads.up_key.transpose(1, 2), backend=backend), rope_part), 2)
    seen = attend_absorbed(
        q, made.cache, made.plan, latent_width=latent, scale=scale, backend=backend
    )
    return head_linear(seen, heads.up_value, backend=backend)


def expanded(
    made: LatentPass, heads: HeadWeights, scale: float, backend: KernelBackend
) -> torch.Tensor:
    """The expanded form: [T', N, V]."""
    return attend_expanded(made.q, made.cache, made.plan, heads, scale=scale, backend=backend)


def exact(
    made: LatentPass, heads: HeadWeights, scale: float, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """The reference: [T', N, V] of dtype."""
    return reference.attend(made.q, made.cache, made.plan, heads, scale=scale, compute_dtype=dtype)
