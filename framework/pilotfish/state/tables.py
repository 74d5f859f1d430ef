"""PageTables: the page ids of every request as rows of one array, ready to be gathered for a pass.

Knows: ids in order, and how rows map to write slots. Does not know: owners or contents.
Axis letters: B requests, W pages of the longest request, S tokens in a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class PageTables:
    """A growing int32 array, one row a request; entries past a request's pages are 0."""

    def __init__(self) -> None:
        self._ids: npt.NDArray[np.int32] = np.zeros((8, 16), dtype=np.int32)
        self._unused = list(range(7, -1, -1))

    def claim_row(self) -> int:
        """A row of zeros for one request."""
        if not self._unused:
            height, width = self._ids.shape
            self._ids = np.vstack([self._ids, np.zeros((height, width), dtype=np.int32)])
            self._unused = list(range(2 * height - 1, height - 1, -1))
        return self._unused.pop()

    def release_row(self, row: int) -> None:
        """Gives a row back."""
        self._ids[row] = 0
        self._unused.append(row)

    def write(self, row: int, start: int, pages: Sequence[int]) -> None:
        """Sets entries start, start+1, ... of a row."""
        stop = start + len(pages)
        if stop > self._ids.shape[1]:
            more = max(stop, 2 * self._ids.shape[1]) - self._ids.shape[1]
            self._ids = np.pad(self._ids, ((0, 0), (0, more)))
        self._ids[row, start:stop] = pages

    def cut(self, row: int, start: int, stop: int) -> None:
        """Sets entries start to stop of a row back to 0."""
        self._ids[row, start:stop] = 0

    def gather(self, rows: Sequence[int], width: int) -> npt.NDArray[np.int32]:
        """The first `width` entries of the given rows: [B, W] int32, a copy."""
        return self._ids[rows, :width]

    def pack(
        self,
        rows: Sequence[int],
        width: int,
        slots: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Moves slots [T] int64, lengths [B] int32 and the table [B, W] int32 to a device at once.

        rows, width: as of `gather`. Each begins at a multiple of 16 bytes, which is what compiled
        kernels specialise on.
        """
        import torch

        table = self._ids[rows, :width]
        slots_end = -(-len(slots) // 2) * 2
        lengths_end = -(-len(lengths) // 4) * 4
        host = np.zeros(slots_end + (lengths_end + table.size + 1) // 2, dtype=np.int64)
        host[: len(slots)] = slots
        ints = host[slots_end:].view(np.int32)
        ints[: len(lengths)] = lengths
        ints[lengths_end : lengths_end + table.size] = table.reshape(-1)
        packed = torch.from_numpy(host).to(device, non_blocking=True)
        packed_ints = packed[slots_end:].view(torch.int32)
        return (
            packed[: len(slots)],
            packed_ints[: len(lengths)],
            packed_ints[lengths_end : lengths_end + table.size].view(table.shape),
        )


def write_slots(pages: Sequence[int], start: int, count: int, page_size_tokens: int) -> list[int]:
    """Slots, page * S + offset, of the `count` rows of a request that begin at row `start`."""
    slots: list[int] = []
    row, stop = start, start + count
    while row < stop:
        index, offset = divmod(row, page_size_tokens)
        rows_here = min(page_size_tokens - offset, stop - row)
        first = pages[index] * page_size_tokens + offset
        slots.extend(range(first, first + rows_here))
        row += rows_here
    return slots
