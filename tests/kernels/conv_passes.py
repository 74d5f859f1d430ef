"""Passes of the short convolution: any ragged batch, any place of the columns, NaN elsewhere."""

from __future__ import annotations

import attrs
import torch
from hypothesis import strategies as st

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.short_conv import ColumnRun, ConvColumns, short_conv

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS = 2


@attrs.frozen
class Rows:
    """Rows of one request in a pass: how many, whether in memory of their own, where it begins.

    first: where in its ring (or strip) the oldest column of its first row lies.
    """

    count: int
    is_run: bool
    first: int


@attrs.frozen
class Batch:
    """A pass: per request its rows; rings of `ring` columns, slots in a shuffled order."""

    rows: tuple[Rows, ...]
    slots: tuple[int, ...]
    width: int
    size: int
    ring: int
    padding: int
    dtype: torch.dtype
    bias: bool
    seed: int


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    width = draw(st.integers(1, 5))
    ring = width + draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    rows = tuple(
        Rows(n, n > ring - width or draw(st.booleans()), draw(st.integers(0, ring - 1)))
        for n in counts
    )
    return Batch(
        rows=rows,
        slots=tuple(draw(st.permutations(range(len(rows) + 1)))[: len(rows)]),
        width=width,
        size=draw(st.sampled_from((1, 3, 16, 33, 130))),
        ring=ring,
        padding=draw(st.integers(0, 3)),
        dtype=draw(st.sampled_from(DTYPES)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@attrs.frozen
class Pass:
    """A batch as tensors; `memories` are all tensors that hold columns."""

    bcx: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    columns: ConvColumns

    @property
    def memories(self) -> list[torch.Tensor]:
        return [
            *self.columns.memory,
            *(memory for run in self.columns.runs for memory in run.memory),
        ]

    def copy(self, device: str) -> Pass:
        """The same pass in memory of its own."""
        columns = self.columns
        runs = tuple(
            attrs.evolve(run, memory=tuple(m.clone().to(device) for m in run.memory))
            for run in columns.runs
        )
        moved = attrs.evolve(
            columns,
            memory=tuple(m.clone().to(device) for m in columns.memory),
            columns=columns.columns.to(device),
            own=columns.own.to(device),
            rows=None if columns.rows is None else columns.rows.to(device),
            places=columns.places.to(device),
            runs=runs,
        )
        bias = None if self.bias is None else self.bias.to(device)
        return Pass(self.bcx.to(device), self.weight.to(device), bias, moved)

    def run(self, backend: KernelBackend) -> torch.Tensor:
        return short_conv(self.bcx, self.weight, self.bias, self.columns, 1, backend=backend)


def make_pass(batch: Batch) -> Pass:
    """Columns that may not be read are NaN; so are padding rows."""
    generator = torch.Generator().manual_seed(batch.seed)
    width, size, ring = batch.width, batch.size, batch.ring

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(batch.dtype)

    memory = [torch.full(((len(batch.rows) + 1) * ring, size), torch.nan) for _ in range(LAYERS)]
    memory = [layer.to(batch.dtype) for layer in memory]
    columns: list[list[int]] = []
    places: list[int] = []
    rows: list[int] = []
    runs: list[ColumnRun] = []
    num_rows = 0
    for slot, part in zip(batch.slots, batch.rows, strict=True):
        if part.is_run:
            strips = [
                torch.full((part.first + width + part.count, size), torch.nan).to(batch.dtype)
                for _ in range(LAYERS)
            ]
            for strip in strips:
                strip[part.first : part.first + width - 1] = noise(width - 1, size)
            if part.count:
                run = ColumnRun(
                    memory=tuple(strips), first_row=num_rows, num_rows=part.count, start=part.first
                )
                runs.append(run)
        else:
            base = slot * ring
            own = [base + (part.first + j) % ring for j in range(width - 1 + part.count)]
            for layer in memory:
                layer[own[: width - 1]] = noise(width - 1, size)
            columns += [own[i : i + width] for i in range(part.count)]
            places += range(part.count)
            rows += range(num_rows, num_rows + part.count)
        num_rows += part.count
    bcx = noise(num_rows + batch.padding, 3 * size)
    bcx[num_rows:] = torch.nan
    table = torch.tensor(columns, dtype=torch.int64).view(-1, width)
    return Pass(
        bcx=bcx,
        weight=torch.randn(width, size, generator=generator),
        bias=torch.randn(size, generator=generator) if batch.bias else None,
        columns=ConvColumns(
            memory=tuple(memory),
            columns=table,
            own=table[:, -1].contiguous(),
            rows=torch.tensor(rows, dtype=torch.int64) if runs else None,
            places=torch.tensor(places, dtype=torch.int64),
            runs=tuple(runs),
            row_counts=tuple(part.count for part in batch.rows),
            ring=ring,
        ),
    )
