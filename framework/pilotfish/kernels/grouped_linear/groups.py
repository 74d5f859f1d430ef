"""RowGroups: the rows of a pass sorted by the group each of them wants.

Knows: sorting and padding, on the device that the choice lies on. Does not know: weights.
Letters: T rows of a pass, S groups of a row, R sorted rows, E groups, B blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import attrs
import torch

from pilotfish.kernels.backend import KernelBackend

# Rows of a block in Triton: those of one Hopper tensor instruction, as in `kernels.linear`. Fixed,
# so that a row's bits do not depend on how many rows share its group.
BLOCK_ROWS = 64
# Pairs of (row, choice) up to which sorting in Python beats a dozen calls of torch.
FEW_PAIRS = 256


@attrs.frozen(kw_only=True, eq=False)
class RowGroups:
    """Which sorted row is which row of the pass, and where each group's rows lie.

    Its tensors may be those of other passes: never to be written.
    rows: [R] int64, the row of the pass that a sorted row copies (padding copies row 0).
    places: [T, S] int64, the sorted row of each (row, choice).
    spans: on a CPU: (group, first sorted row, end) of each group with rows, padding included.
    blocks: triton only: [B, 3] int32, (group, first sorted row, end) of up to BLOCK_ROWS rows;
        first == end where a block is not needed. B depends on T, S and E alone.
    """

    rows: torch.Tensor
    places: torch.Tensor
    spans: tuple[tuple[int, int, int], ...] = ()
    blocks: torch.Tensor | None = None

    def rows_within(self, groups: range) -> range:
        """The sorted rows of some groups that follow one another; on a CPU."""
        held = [(start, end) for group, start, end in self.spans if group in groups]
        return range(held[0][0], held[-1][1]) if held else range(0)

    def within(self, groups: range) -> RowGroups:
        """Those of some groups alone, numbered from 0; `places` means nothing. On a CPU."""
        rows = self.rows_within(groups)
        spans = tuple(
            (group - groups.start, start - rows.start, end - rows.start)
            for group, start, end in self.spans
            if group in groups
        )
        return RowGroups(rows=self.rows[rows.start : rows.stop], places=self.places, spans=spans)


def group_rows(
    choice: torch.Tensor, num_groups: int, *, backend: KernelBackend, row_multiple: int = 1
) -> RowGroups:
    """Sort every (row, choice) by its group; rows of one group keep their order.

    choice: [T, S] int64, from 0 to num_groups - 1. row_multiple: on torch, each group's rows are
    padded to a multiple of it; native code needs no padding. No copy to the host on triton.
    """
    if backend.name == "triton":
        return _on_device(choice, num_groups)
    made = _on_host(choice.cpu(), num_groups, 1 if backend.name == "native" else row_multiple)
    if choice.device.type == "cpu":
        return made
    rows, places = made.rows.to(choice.device), made.places.to(choice.device)
    return attrs.evolve(made, rows=rows, places=places)


def _on_host(choice: torch.Tensor, num_groups: int, row_multiple: int) -> RowGroups:
    if choice.numel() <= FEW_PAIRS:
        return _few_on_host(choice.tolist(), row_multiple)
    groups, order = choice.flatten().sort(stable=True)
    counts = torch.bincount(groups, minlength=num_groups)
    spans: list[tuple[int, int, int]] = []
    shifts, end = [], 0
    for group, count in enumerate(counts.tolist()):
        start, end = end, end + -(-count // row_multiple) * row_multiple
        shifts.append(end - start - count)
        if count:
            spans.append((group, start, end))
    sorted_rows = torch.arange(groups.shape[0])
    sorted_rows += torch.tensor([0, *shifts[:-1]]).cumsum(0).repeat_interleave(counts)
    rows = torch.zeros(end, dtype=torch.int64)
    rows[sorted_rows] = order // choice.shape[1]
    places = torch.empty_like(order)
    places[order] = sorted_rows
    return RowGroups(rows=rows, places=places.view(choice.shape), spans=tuple(spans))


def _few_on_host(choice: list[list[int]], row_multiple: int) -> RowGroups:
    """The same in plain Python, in a quarter of the time where there are few pairs."""
    members: dict[int, list[tuple[int, int]]] = {}
    for row, groups in enumerate(choice):
        for column, group in enumerate(groups):
            members.setdefault(group, []).append((row, column))
    rows: list[int] = []
    spans: list[tuple[int, int, int]] = []
    num_columns = len(choice[0])
    places = [0] * (len(choice) * num_columns)
    for group in sorted(members):
        start = len(rows)
        for row, column in members[group]:
            places[row * num_columns + column] = len(rows)
            rows.append(row)
        rows += [0] * (-(len(rows) - start) % row_multiple)
        spans.append((group, start, len(rows)))
    if len(choice) == 1:
        row_t, place_t = _indices_of_one_row(tuple(rows), tuple(places))
    else:
        row_t, place_t = _indices(rows, places)
    return RowGroups(rows=row_t, places=place_t.view(len(choice), -1), spans=tuple(spans))


def _indices(rows: Sequence[int], places: Sequence[int]) -> tuple[torch.Tensor, ...]:
    both = torch.tensor([*rows, *places], device="cpu")
    return both.split_with_sizes((len(rows), len(places)))


@lru_cache(maxsize=64)
def _indices_of_one_row(rows: tuple[int, ...], places: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """One row's indices depend on the order of its groups only, which a router gives ascending.

    Shared by all who ask: never to be written.
    """
    with torch.inference_mode(False):  # who asks first may be in it, and others not
        return _indices(rows, places)


def _on_device(choice: torch.Tensor, num_groups: int) -> RowGroups:
    device, num_rows = choice.device, choice.numel()
    groups, order = choice.flatten().sort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(num_rows, device=device)
    ids = torch.arange(num_groups + 1, device=device)
    bounds = torch.searchsorted(groups, ids)
    starts, ends = bounds[:-1], bounds[1:]
    # A group of n rows takes ceil(n / BLOCK_ROWS) blocks: at most one of each group is not full.
    last_block = ((ends - starts + BLOCK_ROWS - 1) // BLOCK_ROWS).cumsum(0)
    num_blocks = min(num_rows, num_groups) + num_rows // BLOCK_ROWS
    block = torch.arange(num_blocks, device=device)
    group = torch.searchsorted(last_block, block, right=True)
    is_used = group < num_groups
    group = group.clamp(max=num_groups - 1)
    from_end = last_block[group] - block
    num_in_group = last_block[group] - torch.where(group > 0, last_block[group - 1], 0)
    first = starts[group] + (num_in_group - from_end) * BLOCK_ROWS
    end = torch.minimum(first + BLOCK_ROWS, ends[group])
    first = torch.where(is_used, first, 0)
    end = torch.where(is_used, end, 0)
    blocks = torch.stack((group, first, end), dim=1).to(torch.int32)
    return RowGroups(rows=order // choice.shape[1], places=places.view(choice.shape), blocks=blocks)
