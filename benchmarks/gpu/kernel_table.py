"""One row for every kernel at a model's shapes: its time beside what memory and products allow.

Knows: arguments, bytes moved and operations of each kernel. Does not know: models.
Bytes count every input read once and every output written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.linear import linear, prepare_linear
from pilotfish.kernels.paged_attention import paged_attention, plan_attention
from pilotfish.kernels.rms_norm import add_rms_norm
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.swiglu import swiglu
from pilotfish.state import KVCacheInputs

PAGE_SIZE = 16


@attrs.frozen(kw_only=True)
class Sizes:
    """Widths of one layer. context: keys of every request at decode."""

    width: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int
    rows: tuple[int, ...]
    decoding: tuple[int, ...]
    prefill: int
    context: int


LLAMA_8B = Sizes(
    width=4096, inner=14336, heads=32, kv_heads=8, vocab=128256, head_dim=128,
    rows=(1, 16, 64, 2048), decoding=(1, 16, 64), prefill=2048, context=1024,
)  # fmt: skip
TOY = Sizes(
    width=64, inner=96, heads=4, kv_heads=2, vocab=300, head_dim=16,
    rows=(1, 8), decoding=(1, 2), prefill=8, context=24,
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Case:
    """A call to time. library: torch's own call for the same, where there is one."""

    name: str
    run: Callable[[], object]
    num_bytes: int
    flops: int = 0
    library: Callable[[], object] | None = None


def cases(sizes: Sizes, backend: KernelBackend, device: str) -> Iterator[Case]:
    """Every case, made when it is asked for, so that only one lies in memory."""
    where: Any = {"backend": backend, "device": device}
    for rows in sizes.rows:
        yield from _linear_cases(sizes, rows, backend, device)
        yield from _row_cases(sizes, rows, backend, device)
    for requests in sizes.decoding:
        name = f"paged_attention, {requests} requests of {sizes.context}"
        yield _attention_case(sizes, name, (sizes.context - 1,) * requests, 1, **where)
    name = f"paged_attention, prefill of {sizes.prefill}"
    yield _attention_case(sizes, name, (0,), sizes.prefill, **where)


def _linear_cases(sizes: Sizes, rows: int, backend: KernelBackend, device: str) -> Iterator[Case]:
    qkv = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
    shapes = {
        "qkv": (qkv, sizes.width),
        "o": (sizes.width, sizes.heads * sizes.head_dim),
        "gate and up": (2 * sizes.inner, sizes.width),
        "down": (sizes.width, sizes.inner),
        "head": (sizes.vocab, sizes.width),
    }
    for name, (width_o, width_k) in shapes.items():
        plain = torch.randn(width_o, width_k, device=device).mul_(width_k**-0.5).bfloat16()
        x = torch.randn(rows, width_k, device=device).bfloat16()
        # The same memory on a GPU; a packed copy on a CPU.
        weight = prepare_linear(plain, backend=backend)
        yield Case(
            name=f"linear {name}, {rows} rows",
            run=lambda x=x, weight=weight: linear(x, weight, backend=backend),  # type: ignore[misc]
            num_bytes=2 * (width_o * width_k + rows * (width_o + width_k)),
            flops=2 * rows * width_o * width_k,
            library=lambda x=x, plain=plain: x @ plain.T,  # type: ignore[misc]
        )


def _row_cases(sizes: Sizes, rows: int, backend: KernelBackend, device: str) -> Iterator[Case]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).bfloat16()

    x, stream, gain = noise(rows, sizes.width), noise(rows, sizes.width), noise(sizes.width)
    yield Case(
        name=f"add_rms_norm, {rows} rows",
        run=lambda: add_rms_norm(x, stream, gain, 1e-5, cast="before_weight", backend=backend),
        num_bytes=2 * 4 * rows * sizes.width,
    )
    heads = noise(rows, sizes.heads + sizes.kv_heads, sizes.head_dim)
    angles = torch.rand(rows, sizes.head_dim, device=device)
    cos, sin = angles.cos(), angles.sin()
    yield Case(
        name=f"rope, {rows} rows",
        run=lambda: apply_rope(heads, cos, sin, backend=backend),
        num_bytes=2 * 2 * heads.numel() + 4 * 2 * cos.numel(),
    )
    gate_up = noise(rows, 2 * sizes.inner)
    yield Case(
        name=f"swiglu, {rows} rows",
        run=lambda: swiglu(gate_up, backend=backend),
        num_bytes=2 * 3 * rows * sizes.inner,
    )
    kv = noise(rows, 2, sizes.kv_heads, sizes.head_dim)
    cache = noise(rows, PAGE_SIZE, 2, sizes.kv_heads, sizes.head_dim)
    slots = torch.randperm(rows * PAGE_SIZE, device=device)[:rows]
    yield Case(
        name=f"kv_write, {rows} rows",
        run=lambda: write_kv(kv, cache, slots, backend=backend),
        num_bytes=2 * 2 * kv.numel(),
    )


def _attention_case(
    sizes: Sizes,
    name: str,
    lengths: tuple[int, ...],
    count: int,
    *,
    backend: KernelBackend,
    device: str,
) -> Case:
    """Requests of `lengths` committed rows, each with `count` more in this pass."""
    num_pages = -(-(lengths[0] + count) // PAGE_SIZE)
    shape = (len(lengths) * num_pages, PAGE_SIZE, 2, sizes.kv_heads, sizes.head_dim)
    cache = torch.randn(shape, device=device).bfloat16()
    table = torch.randperm(shape[0]).view(len(lengths), num_pages).int()
    kv = KVCacheInputs(
        blocks=(cache,),
        lookup_table=table.to(device),
        cache_lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        write_slots=torch.zeros(len(lengths) * count, dtype=torch.int64, device=device),
        page_size_tokens=PAGE_SIZE,
        lengths=lengths,
        row_counts=(count,) * len(lengths),
    )
    offsets = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device) * count
    plan = plan_attention(kv, offsets, backend=backend)
    rows = len(lengths) * count
    q = torch.randn(rows, sizes.heads, sizes.head_dim, device=device).bfloat16()
    scale = sizes.head_dim**-0.5
    seen = sum(length + (count + 1) / 2 for length in lengths)
    token_bytes = 2 * 2 * sizes.kv_heads * sizes.head_dim
    return Case(
        name=name,
        run=lambda: paged_attention(q, cache, plan, scale=scale, backend=backend),
        num_bytes=token_bytes * sum(length + count for length in lengths) + 2 * 2 * q.numel(),
        flops=int(2 * 2 * sizes.heads * sizes.head_dim * count * seen),
    )
