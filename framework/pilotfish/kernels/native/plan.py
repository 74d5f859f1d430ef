"""Plan: native calls laid down once, when a model is loaded, and run by one call in every pass.

Knows: argument records and which of their fields change from pass to pass. Does not know: any
kernel, layer or model.

A record is written when it is planned. What changes later (how many rows there are, where a
buffer or a pass's tensor lies) is written into all records at once before a run, by NumPy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from pilotfish.kernels.native.buffers import (
    Buffer,
    Columns,
    Pointer,
    Rows,
    check_record,
    share_memory,
)
from pilotfish.kernels.native.library import library, why_not

_ALIGNMENT = 64
_AFTER_ALL = 1 << 62
_UNCUT_ROWS = 32
"""A pass of more rows is run part by part, so that an interrupt need not wait for all of it."""


@attrs.frozen(eq=False)
class _TorchStep:
    """Code that is no native call: it gets the tensors of its buffers, reads and fills them."""

    function: Callable[..., object]
    buffers: tuple[Buffer, ...]


class Plan:
    """Records calls, then runs them.

    Planned in order: `call` for each, with fields as plain numbers, addresses of tensors that live
    as long as the model (`keep` them), Buffers, Columns, Pointers and Rows. `finish` ends that.
    """

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._calls: list[tuple[int, int]] = []
        self._steps: dict[int, list[_TorchStep]] = {}
        self._size = 0
        self._kept: list[Any] = []
        self._rows_fields: dict[Rows, list[int]] = {}
        self._buffer_fields: list[tuple[int, Buffer, int]] = []
        self._pointer_fields: dict[str, list[int]] = {}
        self._uses: dict[Buffer, tuple[int, int]] = {}
        self._marks: list[int] = []

    @property
    def num_calls(self) -> int:
        """Calls planned so far."""
        return len(self._calls)

    @property
    def num_torch_steps(self) -> int:
        """Steps planned so far that are no native calls."""
        return sum(len(steps) for steps in self._steps.values())

    def keep(self, *objects: Any) -> None:
        """Objects whose memory the records name: they live as long as the plan."""
        self._kept.extend(objects)

    def mark(self) -> None:
        """A place at which a long pass may be interrupted: `run` can stop between calls here."""
        if self._calls and (not self._marks or self._marks[-1] != len(self._calls)):
            self._marks.append(len(self._calls))

    def call(self, function: str | int, record: type[ctypes.Structure], /, **fields: Any) -> None:
        """Plans a call.

        function: its name in the core's library, or the address of a plugin's own.
        record: the Structure of its arguments; fields: all of that structure's.
        """
        native = library()
        assert native is not None, why_not()
        args = record()
        index = len(self._calls)
        names = {name for name, *_ in record._fields_}
        if names != fields.keys():
            raise ValueError(
                f"{record.__name__} was planned without {sorted(names - fields.keys())} and with "
                f"{sorted(fields.keys() - names)}; wanted every field of the record, and no other"
            )
        check_record(record.__name__, fields)
        for name, value in fields.items():
            at = self._size + getattr(record, name).offset
            if isinstance(value, Rows):
                self._rows_fields.setdefault(value, []).append(at // 8)
            elif isinstance(value, Buffer | Columns):
                self._use(at, value, index)
            elif isinstance(value, Pointer):
                self._pointer_fields.setdefault(value.name, []).append(at // 8)
            else:
                setattr(args, name, value)
        address = function if isinstance(function, int) else native.address(function)
        self._calls.append((address, self._size))
        raw = bytes(args)
        padded = -(-len(raw) // _ALIGNMENT) * _ALIGNMENT
        self._records.append(raw + bytes(padded - len(raw)))
        self._size += padded

    def torch(self, function: Callable[..., object], *buffers: Buffer) -> None:
        """Plans code that is no native call: it ends a run of calls, and another begins.

        function: gets the tensors of `buffers`, [rows, width] each, reads and writes them; it is
        left out of a pass in which one has no rows. None of them may be external.
        """
        index = len(self._calls)
        for buffer in buffers:
            assert buffer.external is None, buffer.external
            begin, end = self._uses.get(buffer, (index, index))
            # It runs before call `index`: its memory must last until then, and from before it.
            self._uses[buffer] = (begin if buffer in self._uses else index - 1, max(end, index))
        self._steps.setdefault(index, []).append(_TorchStep(function, buffers))

    def fill(self, *buffers: Buffer) -> None:
        """Buffers whose rows are written before the first call, with `PlannedCalls.tensor`."""
        for buffer in buffers:
            assert buffer.external is None, buffer.external
            self._uses[buffer] = (-1, self._uses.get(buffer, (-1, -1))[1])

    def read(self, *buffers: Buffer) -> None:
        """Buffers whose rows are read after the last call, with `PlannedCalls.tensor`."""
        for buffer in buffers:
            assert buffer.external is None, buffer.external
            self._uses[buffer] = (self._uses[buffer][0], _AFTER_ALL)

    def _use(self, at: int, value: Buffer | Columns, index: int) -> None:
        buffer, first = (value, 0) if isinstance(value, Buffer) else (value.buffer, value.first)
        shift = first * buffer.dtype.itemsize
        if buffer.external is not None:
            assert shift == 0, "an external buffer is named from its first column"
            self._pointer_fields.setdefault(buffer.external, []).append(at // 8)
            return
        self._buffer_fields.append((at // 8, buffer, shift))
        begin, end = self._uses.get(buffer, (index, index))
        self._uses[buffer] = (begin, max(end, index))

    def finish(self) -> PlannedCalls:
        """The calls, ready to run."""
        return PlannedCalls(self)


def _ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


class PlannedCalls:
    """Calls that are run in every pass. Made by `Plan.finish`; not for two threads at once."""

    def __init__(self, plan: Plan) -> None:
        records = b"".join(plan._records)
        self._memory = torch.empty(len(records) + _ALIGNMENT, dtype=torch.uint8)
        start = -self._memory.data_ptr() % _ALIGNMENT
        view = self._memory[start : start + len(records)]
        if records:
            view.copy_(torch.frombuffer(bytearray(records), dtype=torch.uint8))
        self._fields: npt.NDArray[np.int64] = view.numpy().view(np.int64)
        base = view.data_ptr()
        self._calls = np.array([(a, base + offset) for a, offset in plan._calls], dtype=np.int64)
        self._calls_address = self._calls.ctypes.data
        self._steps, self._kept = plan._steps, plan._kept
        # Where a run of calls ends: at torch code always, at marks where a pass is long.
        self._ends = sorted({*plan._steps, len(plan._calls)})
        self._short_ends = sorted({*self._ends, *plan._marks})
        self._rows_fields = {rows: _ints(at) for rows, at in plan._rows_fields.items()}
        self._pointer_fields = {name: _ints(at) for name, at in plan._pointer_fields.items()}
        self.pointers = self._pointer_fields.keys()
        """The names whose addresses `run` wants."""
        self.num_torch_steps = plan.num_torch_steps
        """Steps that are no native calls."""
        self._places, self._slots = share_memory(plan._uses)
        self._buffer_at = _ints([at for at, _, _ in plan._buffer_fields])
        self._buffer_slot = _ints([self._places[held] for _, held, _ in plan._buffer_fields])
        self._buffer_shift = _ints([shift for _, _, shift in plan._buffer_fields])
        self._begun: dict[Rows, int] = {}
        self._num_rows: dict[Rows, int] = {}
        self._room: dict[Rows, int] = {}
        self._arena: list[torch.Tensor] = []
        self._addresses: dict[str, int] = {}
        self._is_long = False

    @property
    def scratch_bytes(self) -> int:
        """Memory between calls that is held now."""
        return sum(part.numel() for part in self._arena)

    # An exception, or an interrupt, may come between any two lines: what is known to be written is
    # forgotten before it changes, so that the next pass writes it again.

    def begin(self, num_rows: Mapping[Rows, int]) -> None:
        """Makes room for a pass. num_rows: of each Rows that was planned with, multiples aside."""
        if num_rows == self._begun:
            return
        self._begun = {}
        counts = dict(pair for rows, count in num_rows.items() for pair in rows.counts(count))
        for rows, fields in self._rows_fields.items():
            self._fields[fields] = counts[rows]
        if not self._arena or any(n > self._room.get(rows, 0) for rows, n in counts.items()):
            self._grow(counts)
        self._num_rows = counts
        self._is_long = max(num_rows.values()) > _UNCUT_ROWS
        self._begun = dict(num_rows)

    def run(self, pointers: Mapping[str, int], threads: int) -> None:
        """Runs every call, after `begin`.

        pointers: an address for every name that was planned with.
        """
        written = self._addresses
        for name, fields in self._pointer_fields.items():
            address = pointers[name]
            if written.get(name) != address:
                written.pop(name, None)
                self._fields[fields] = address
                written[name] = address
        native = library()
        assert native is not None, why_not()
        run, first = native.lib.pf_run, 0
        for end in self._short_ends if self._is_long else self._ends:
            if end > first:
                run(self._calls_address + 16 * first, end - first, threads)
            for step in self._steps.get(end, ()):
                if all(self._num_rows[buffer.rows] for buffer in step.buffers):
                    step.function(*(self.tensor(buffer) for buffer in step.buffers))
            first = end

    def tensor(self, buffer: Buffer) -> torch.Tensor:
        """[rows, width], the buffer's own memory, while the pass is at a call that uses it.

        Buffers that were planned to be read keep theirs until the next pass begins.
        """
        part = self._arena[self._places[buffer]]
        start, count = -part.data_ptr() % _ALIGNMENT, self._num_rows[buffer.rows]
        memory = part[start : start + count * buffer.row_bytes]
        return memory.view(buffer.dtype).view(count, buffer.width)

    def _grow(self, counts: Mapping[Rows, int]) -> None:
        """Memory between calls for more rows than ever."""
        room, self._room = self._room, {}
        self._arena = []
        room |= {rows: max(count, room.get(rows, 0)) for rows, count in counts.items()}
        sizes = [room.get(rows, 0) * width + _ALIGNMENT for rows, width in self._slots]
        self._arena = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        starts = _ints([-(-part.data_ptr() // _ALIGNMENT) * _ALIGNMENT for part in self._arena])
        self._fields[self._buffer_at] = starts[self._buffer_slot] + self._buffer_shift
        self._room = room
