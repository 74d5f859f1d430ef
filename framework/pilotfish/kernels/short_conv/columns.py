"""ConvColumns: one pass's rows and the places of the columns that each of them reads.

Knows: indices. Does not know: requests, or what a column holds.
Letters: R rows in place, D model width, M columns of memory.
"""

from __future__ import annotations

from typing import Any, Self

import attrs
import torch

from pilotfish.state import SlotInputs


@attrs.frozen(kw_only=True)
class ColumnRun(SlotInputs):
    """Many rows of one request whose columns lie in a row, in memory of their own.

    memory: per layer [M, D]. first_row, num_rows: which packed rows.
    start: the oldest column of the first row; row i reads columns start + i to
        start + i + width - 1 and owns the last of them.
    """

    memory: tuple[torch.Tensor, ...]
    first_row: int
    num_rows: int
    start: int

    def next_row(self) -> Self:
        """The one row after the run's; its place in the batch is set by the caller."""
        return attrs.evolve(self, start=self.start + self.num_rows, num_rows=1)


@attrs.frozen(kw_only=True)
class ConvColumns(SlotInputs):
    """The columns of one pass.

    memory: per layer [M, D], the columns of the rows in place: those of no run.
    columns: [R, width] int64, the columns each row in place reads, oldest first, its own last.
    own: [R] int64, its own column again.
    rows: [R] int64, which packed rows those are; None when there are no runs and it is all of them.
    places: [R] int64, how many rows of its request come before it in this pass.
    runs: requests with many rows. row_counts: rows of each request, on the host.
    ring: a request's columns lie in a ring of so many, which begins at a multiple of it.
    native: what the native kernel keeps of this pass; empty in a copy.
    """

    memory: tuple[torch.Tensor, ...]
    columns: torch.Tensor
    own: torch.Tensor
    rows: torch.Tensor | None
    places: torch.Tensor
    runs: tuple[ColumnRun, ...]
    row_counts: tuple[int, ...]
    ring: int
    native: dict[str, Any] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    def next_row(self) -> Self:
        """One row per request, after its rows of this pass. Raises ValueError if one has none."""
        if 0 in self.row_counts:
            raise ValueError(
                f"the pass has {list(self.row_counts)} rows; wanted rows of every request before "
                "the next inputs"
            )
        run_at = {run.first_row: run for run in self.runs}
        ends: list[int] = []
        rows: list[int] = []
        runs: list[ColumnRun] = []
        first_row = end = 0
        for request, count in enumerate(self.row_counts):
            if first_row in run_at:
                runs.append(attrs.evolve(run_at[first_row].next_row(), first_row=request))
            else:
                end += count
                ends.append(end - 1)
                rows.append(request)
            first_row += count
        device = self.columns.device
        last = self.columns[torch.tensor(ends, dtype=torch.int64, device=device)]
        offset = last % self.ring
        columns = last - offset + (offset + 1) % self.ring
        return attrs.evolve(
            self,
            columns=columns,
            own=columns[:, -1].contiguous(),
            rows=torch.tensor(rows, dtype=torch.int64, device=device) if runs else None,
            places=torch.zeros(len(rows), dtype=torch.int64, device=device),
            runs=tuple(runs),
            row_counts=(1,) * len(self.row_counts),
        )
