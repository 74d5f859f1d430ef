"""Buffers: the rows between two planned calls, and what a record says of them.

Knows: numbers of rows, widths, dtypes, and from which call to which a buffer is needed. Does not
know: addresses, or what the calls compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from pilotfish.kernels.native.numbers import dtype_code, has_code


@attrs.frozen(eq=False)
class Rows:
    """A number of rows that every pass has anew: all rows of it, say, or those with logits."""

    name: str
    _multiples: dict[int, Rows] = attrs.field(factory=dict, init=False, repr=False)

    def times(self, factor: int) -> Rows:
        """So many for each of these; no pass says how many they are. The same one for a factor."""
        if factor not in self._multiples:
            self._multiples[factor] = Rows(f"{factor} {self.name}")
        return self._multiples[factor]

    def counts(self, count: int) -> Iterator[tuple[Rows, int]]:
        """How many these, and all multiples that were asked for, are in a pass that has `count`."""
        yield self, count
        for factor, rows in self._multiples.items():
            yield from rows.counts(factor * count)


@attrs.frozen(eq=False)
class Buffer:
    """Rows between two calls: [rows, width] of a dtype, contiguous.

    external: the pass gives its address; else the plan has memory for it, from the call that first
    names it to the one that last does.
    """

    rows: Rows
    width: int
    dtype: torch.dtype
    external: str | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    def columns(self, first: int = 0, width: int | None = None) -> Columns:
        """The same rows from one column on, for fields that hold an address; width: None: all."""
        return Columns(self, first, self.width - first if width is None else width)


@attrs.frozen(eq=False)
class Columns:
    """`width` columns of a buffer, which begin at an address inside of every row."""

    buffer: Buffer
    first: int
    width: int

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: the buffer's own -> a view of these columns."""
        return rows.narrow(1, self.first, self.width)


@attrs.frozen(eq=False)
class Pointer:
    """An address that the pass gives by name: a page table, a cache's layer."""

    name: str


def check_record(record: str, fields: Mapping[str, Any]) -> None:
    """Raises ValueError where a record says another dtype or other rows than its buffers have.

    `dtype` is that of a buffer of the record, `x_dtype` that of its buffer `x`.
    """
    buffers = {
        name: value if isinstance(value, Buffer) else value.buffer
        for name, value in fields.items()
        if isinstance(value, Buffer | Columns)
    }
    if not buffers:
        return
    rows = {each for buffer in buffers.values() for each, _ in buffer.rows.counts(1)}
    for name, value in fields.items():
        if isinstance(value, Rows) and value not in rows:
            names = ", ".join(sorted({buffer.rows.name for buffer in buffers.values()}))
            raise ValueError(
                f"{record}.{name} is the number of rows {value.name!r}, which no buffer of the "
                f"record has; wanted that of one of them: {names}"
            )
        whose, is_dtype, _ = name.rpartition("dtype")
        of_one = buffers.get(whose.removesuffix("_"))
        if is_dtype and (of_one is not None or not whose):
            found = [of_one] if of_one is not None else list(buffers.values())
            known = [buffer.dtype for buffer in found if has_code(buffer.dtype)]
            codes = {dtype_code(dtype): str(dtype) for dtype in known}
            if codes and value not in codes:
                raise ValueError(
                    f"{record}.{name} is {value}; wanted the dtype_code of the buffer that it "
                    f"speaks for: {', '.join(f'{code} ({of})' for code, of in codes.items())}"
                )


def share_memory(
    uses: Mapping[Buffer, tuple[int, int]],
) -> tuple[dict[Buffer, int], list[tuple[Rows, int]]]:
    """A slot of memory for every buffer: one is free again after the last call that names it.

    uses: the first and last call of each. Also returns every slot's rows and the bytes of one.
    """
    places: dict[Buffer, int] = {}
    slots: list[tuple[Rows, int]] = []
    free: dict[tuple[Rows, int], list[int]] = {}
    busy: list[tuple[int, Buffer]] = []
    for buffer, (begin, end) in sorted(uses.items(), key=lambda use: use[1][0]):
        for last, held in [one for one in busy if one[0] < begin]:
            busy.remove((last, held))
            free.setdefault((held.rows, held.row_bytes), []).append(places[held])
        kind = buffer.rows, buffer.row_bytes
        if free.get(kind):
            places[buffer] = free[kind].pop()
        else:
            places[buffer] = len(slots)
            slots.append(kind)
        busy.append((end, buffer))
    return places, slots
