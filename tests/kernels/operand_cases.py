"""Public kernels on native, called with operands that lie as one says: for tests of how they lie.

Knows: operands that fit. Does not know: what is asserted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kernels.native_cases import NATIVE
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.context_kv_write import write_context_kv
from pilotfish.kernels.grouped_linear import GroupedWeight, RowGroups, group_rows
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.linear import LinearWeight, PackedRows, prepare_linear
from pilotfish.kernels.router import choose_experts
from pilotfish.kernels.sampling import native as sampling
from pilotfish.kernels.short_conv import ConvColumns, short_conv

ROWS, WIDTH, HEADS, EXPERTS = 20, 24, 3, 8
EPS = 1e-5
Layout = Callable[[torch.Tensor], torch.Tensor]


def columns_of(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, as some columns of wider rows."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), 0, dtype=x.dtype)
    wide[..., 2:-3] = x
    return wide[..., 2:-3]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def indices(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(count))


def plain_weight(outputs: int = 7) -> LinearWeight:
    return prepare_linear(draw(outputs, WIDTH), backend=NATIVE)


def grouped_weight() -> GroupedWeight:
    parts = [PackedRows(draw(7, WIDTH) + group, "float32", WIDTH) for group in range(EXPERTS)]
    return GroupedWeight.from_parts(parts, torch.float32)


def sorted_rows() -> RowGroups:
    return group_rows(indices(EXPERTS, ROWS, 2), EXPERTS, backend=NATIVE)


def written(lay: Layout, slots: torch.Tensor | None = None) -> torch.Tensor:
    cache = torch.zeros(13, 2, HEADS, WIDTH)
    slots = torch.arange(ROWS).flip(0) if slots is None else slots
    write_kv(lay(draw(ROWS, HEADS, WIDTH)), cache, lay(slots), backend=NATIVE)
    return cache


def context_written(
    lay: Layout, slots: torch.Tensor | None = None, angles: int = ROWS
) -> torch.Tensor:
    caches = [torch.zeros(13, 2, 2, HEADS, WIDTH) for _ in range(2)]
    cos, sin = lay(draw(ROWS, 8)), lay(draw(angles, 8))
    slots = torch.arange(ROWS).flip(0) if slots is None else slots
    gain = lay(draw(2, WIDTH))
    kv = draw(ROWS, 2, 2, HEADS, WIDTH)
    write_context_kv(kv, gain, (cos, sin), caches, lay(slots), eps=EPS, backend=NATIVE)
    return torch.stack(caches)


def convolved(lay: Layout, *, layer: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    memory = torch.zeros(ROWS + 2, WIDTH, dtype=dtype)
    columns = torch.arange(ROWS)[:, None] + torch.arange(3)
    places = ConvColumns(
        memory=(memory,),
        columns=lay(columns),
        own=columns[:, 2].contiguous(),
        rows=None,
        places=torch.arange(ROWS),
        runs=(),
        row_counts=(ROWS,),
        ring=ROWS + 2,
    )
    bcx, weight, bias = lay(draw(ROWS, 3 * WIDTH)), lay(draw(3, WIDTH)), lay(draw(WIDTH))
    return short_conv(bcx, weight, bias, places, layer, backend=NATIVE)


def sampled(lay: Layout) -> torch.Tensor:
    tokens, records = torch.zeros(ROWS, dtype=torch.int64), sampling.new_rows(ROWS)
    for record in records:
        record.temperature = 1.0
    assert sampling.sample_rows(lay(draw(ROWS, 90)), records, tokens=tokens, draws=True)
    return tokens


def chosen(lay: Layout, **options: Any) -> torch.Tensor:
    asked: dict[str, Any] = {"scoring": "sigmoid", "num_chosen": 2} | options
    logits, bias = lay(draw(ROWS, EXPERTS)), lay(draw(EXPERTS))
    return torch.cat(choose_experts(logits, bias, **asked, backend=NATIVE), 1)


def combined(lay: Layout, num_rows: int = 13, **other: torch.Tensor) -> torch.Tensor:
    given = {
        "x": draw(ROWS, WIDTH),
        "places": indices(ROWS, 9, 2),
        "weights": draw(9, 2),
        "last": draw(13, WIDTH),
    } | other
    given = {name: lay(tensor) for name, tensor in given.items()}
    return combine_rows(**given, num_rows=num_rows, backend=NATIVE)
