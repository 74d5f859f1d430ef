"""Passes over paged caches whose every row that nobody may read is NaN.

Knows: how requests become pages, inputs and a plan. Does not know: what attention should give.
Letters: T packed tokens, N query heads, K kv heads, H head width, P pages, S tokens in a page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import attrs
import torch
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.invariance.attention_probe import attention_row_multiple
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.paged_attention import AttentionPlan, Mode, paged_attention, plan_attention
from pilotfish.state import KVCacheInputs

paged_attention = placed(paged_attention)
write_kv = placed(write_kv)

TORCH, TRITON = KernelBackend("torch"), KernelBackend("triton")


@cache
def probed(num_kv_heads: int, width: int) -> int:
    """What a model would pad to on this machine; the promise is that there is something."""
    found = attention_row_multiple(num_kv_heads, width)
    assert found is not None
    return found


@attrs.frozen
class Heads:
    """Head counts and width."""

    query: int
    kv: int
    width: int


@attrs.frozen(eq=False)
class Request:
    """A whole context: q [n, N, H] and kv [n, 2, K, H] of every position."""

    q: torch.Tensor
    kv: torch.Tensor

    @classmethod
    def draw(cls, num_tokens: int, heads: Heads, dtype: torch.dtype, seed: int) -> Request:
        noise = torch.Generator().manual_seed(seed)
        q = torch.randn(num_tokens, heads.query, heads.width, generator=noise)
        kv = torch.randn(num_tokens, 2, heads.kv, heads.width, generator=noise)
        return cls((1.5 * q).to(dtype), kv.to(dtype))


@attrs.frozen
class Rows:
    """A pass computes these positions of a request; those before are committed."""

    request: Request
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


@attrs.frozen(eq=False)
class PagedPass:
    """Everything that `paged_attention` takes."""

    q: torch.Tensor
    cache: torch.Tensor
    plan: AttentionPlan


def make_pass(
    rows: Sequence[Rows],
    *,
    page_size: int,
    seed: int = 0,
    padding: int = 0,
    backend: KernelBackend = TORCH,
    row_multiple: int | None = None,
) -> PagedPass:
    """Scatters the requests over shuffled pages and writes this pass's rows with `write_kv`."""
    page_counts = [-(-r.end // page_size) for r in rows]
    pages = list(range(sum(page_counts) + 3))
    random.Random(seed).shuffle(pages)
    table = torch.zeros(len(rows), max(page_counts) + 1, dtype=torch.int32)
    _, _, num_kv_heads, width = rows[0].request.kv.shape
    dtype = rows[0].request.kv.dtype
    cache = torch.full((len(pages), page_size, 2, num_kv_heads, width), torch.nan, dtype=dtype)
    write_slots: list[int] = []
    for b, r in enumerate(rows):
        own = [pages.pop() for _ in range(page_counts[b])]
        table[b, : len(own)] = torch.tensor(own, dtype=torch.int32)
        slots = [own[j // page_size] * page_size + j % page_size for j in range(r.end)]
        cache.flatten(0, 1)[slots[: r.start]] = r.request.kv[: r.start]
        write_slots += slots[r.start :]
    filler = torch.full((padding, 2, num_kv_heads, width), torch.nan, dtype=dtype)
    kv = torch.cat([r.request.kv[r.start : r.end] for r in rows] + [filler])
    offsets = torch.tensor([0, *(r.count for r in rows)]).cumsum(0).int()
    inputs = KVCacheInputs(
        blocks=(cache,),
        lookup_table=table,
        cache_lengths=torch.tensor([r.start for r in rows], dtype=torch.int32),
        write_slots=torch.tensor(write_slots, dtype=torch.int64),
        page_size_tokens=page_size,
        lengths=tuple(r.start for r in rows),
        row_counts=tuple(r.count for r in rows),
    )
    write_kv(kv, cache, inputs.write_slots, backend=backend)
    q = [r.request.q[r.start : r.end] for r in rows]
    q_padding = torch.full((padding, *q[0].shape[1:]), torch.nan, dtype=dtype)
    if row_multiple is None and backend.name == "torch":
        row_multiple = probed(num_kv_heads, width)
    plan = plan_attention(inputs, offsets, backend=backend, row_multiple=row_multiple)
    return PagedPass(torch.cat([*q, q_padding]), cache, plan)


def attend(
    rows: Sequence[Rows],
    *,
    backend: KernelBackend = TORCH,
    window: int | None = None,
    mode: Mode = "causal",
    page_size: int = 16,
    seed: int = 0,
    padding: int = 0,
) -> list[torch.Tensor]:
    """Runs one pass and returns each request's rows [n, N, H]."""
    made = make_pass(rows, page_size=page_size, seed=seed, padding=padding, backend=backend)
    scale = made.q.shape[2] ** -0.5
    out = paged_attention(
        made.q, made.cache, made.plan, scale=scale, window=window, mode=mode, backend=backend
    )
    num_rows = sum(r.count for r in rows)
    assert out.shape == made.q.shape
    assert out.is_contiguous()
    return list(out[:num_rows].split([r.count for r in rows]))


def exact(
    rows: Rows,
    window: int | None,
    mode: str,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Plain matmul-softmax-matmul over the request's own keys in one dtype. Returns [n, N, H]."""
    kv, q = rows.request.kv[: rows.end].to(dtype), rows.request.q[rows.start : rows.end].to(dtype)
    group = q.shape[1] // kv.shape[2]
    k, v = kv.repeat_interleave(group, 2).permute(1, 2, 0, 3)
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * q.shape[2] ** -0.5
    behind = torch.arange(rows.start, rows.end)[:, None] - torch.arange(rows.end)
    seen = behind >= 0 if mode == "causal" else torch.full_like(behind, True, dtype=torch.bool)
    if window is not None:
        seen &= behind.abs() < window
    scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def heads() -> st.SearchStrategy[Heads]:
    """Group sizes and widths of real families, and awkward ones."""
    return st.sampled_from(
        (
            Heads(9, 3, 64),
            Heads(4, 4, 10),
            Heads(8, 2, 16),
            Heads(2, 1, 24),
            Heads(7, 1, 80),
            Heads(4, 2, 128),
        )
    )


def windows() -> st.SearchStrategy[int | None]:
    """No window, tiny ones, and ones around the borders of partitions."""
    return st.sampled_from((None, None, None, 1, 2, 5, 127, 128, 129, 300))
