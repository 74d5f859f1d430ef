"""A pass of native calls as one file: records, the memory that they name, and what was there after.

Knows: argument records, and where their addresses lead. Does not know: any kernel or model.
replay.cpp runs such files where Python and torch are not: on an emulator, or under a sanitizer.

A file is little-endian words of 64 bits: how many pieces of memory, and each (bytes, content, and
addresses inside of it); how many calls, and each (name, record, and addresses inside of that). An
address is (where it stands, which piece, how far into it). Pieces hold what they held before.
"""

from __future__ import annotations

import ctypes
import gc
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from pilotfish.kernels.native import library
from pilotfish.kernels.native.plan import Plan, PlannedCalls

_WORD = (1 << 64) - 1


@attrs.define(eq=False)
class Piece:
    """Memory of this process. addresses: (where in it, which piece, how far into that)."""

    start: int
    size: int
    before: bytes = b""
    addresses: list[tuple[int, int, int]] = attrs.field(factory=list)

    def content(self) -> bytes:
        """What is there."""
        return ctypes.string_at(self.start, self.size)


@attrs.frozen(kw_only=True)
class Replay:
    """Calls in a row. after: the digest of all their memory, addresses aside, when they had run."""

    data: bytes
    after: str
    calls: tuple[str, ...]


@contextmanager
def recorded() -> Iterator[list[Replay]]:
    """Inside of it plans are laid down and run; yields what ran, pass after pass.

    A pass with steps of torch's is several: what runs between them.
    """
    found: list[Replay] = []
    call, finish, run = Plan.call, Plan.finish, PlannedCalls.run

    def named_call(self: Plan, function: Any, record: Any, /, **fields: Any) -> None:
        vars(self).setdefault("named", []).append((function, record))
        call(self, function, record, **fields)

    def named_finish(self: Plan) -> PlannedCalls:
        made = finish(self)
        vars(made)["named"] = vars(self)["named"]
        return made

    def recorded_run(self: PlannedCalls, pointers: Mapping[str, int], threads: int) -> None:
        native = library()
        assert native is not None
        for name, fields in self._pointer_fields.items():
            self._fields[fields] = pointers[name]
        first = 0
        for end in self._ends:
            if end > first:
                image = _Image(self, first, end)
                native.lib.pf_run(self._calls_address + 16 * first, end - first, threads)
                found.append(image.replay())
            for step in self._steps.get(end, ()):
                step.function(*(self.tensor(buffer) for buffer in step.buffers))
            first = end

    patched: Any = (Plan, PlannedCalls)
    patched[0].call, patched[0].finish, patched[1].run = named_call, named_finish, recorded_run
    try:
        yield found
    finally:
        patched[0].call, patched[0].finish, patched[1].run = call, finish, run


def _has_memory(tensor: torch.Tensor) -> bool:
    """Not where it is empty, or stands in for one while torch compiles."""
    try:
        return bool(tensor.numel() and tensor.data_ptr())
    except RuntimeError:
        return False


class _Image:
    """The memory that calls read and write, found from their records before they run."""

    def __init__(self, calls: PlannedCalls, first: int, end: int) -> None:
        self.pieces: list[Piece] = []
        self.records: list[tuple[str, bytes, list[tuple[int, int, int]]]] = []
        self._of: dict[tuple[int, int], int] = {}
        alive = gc.get_objects()
        self._nested: dict[int, Any] = {}  # records and tables that records lead to
        for one in alive:
            if issubclass(type(one), ctypes.Array | ctypes.Structure):
                known = self._nested.setdefault(ctypes.addressof(one), one)
                if ctypes.sizeof(one) > ctypes.sizeof(known):
                    self._nested[ctypes.addressof(one)] = one
        self._tensors = [
            (one.data_ptr(), _extent(one))
            for one in alive
            if type(one) is torch.Tensor and one.device.type == "cpu" and _has_memory(one)
        ]
        self._slots = []
        for (rows, row_bytes), part in zip(calls._slots, calls._arena, strict=True):
            start = -(-part.data_ptr() // 64) * 64
            self._slots.append((start, calls._num_rows[rows] * row_bytes))
        named = zip(vars(calls)["named"], calls._calls, strict=True)
        for (name, record), (_, at) in list(named)[first:end]:
            assert isinstance(name, str), "a plugin's own function"
            addresses = self._addresses(record.from_address(int(at)), name)
            raw = bytearray(ctypes.string_at(int(at), ctypes.sizeof(record)))
            for where, _, _ in addresses:
                raw[where : where + 8] = bytes(8)
            self.records.append((name, bytes(raw), addresses))
        for piece in self.pieces:
            piece.before = piece.content()

    def replay(self) -> Replay:
        """After the pass has run."""
        self._check_overlaps()
        words = [_words(len(self.pieces))]
        for piece in self.pieces:
            words += [_words(piece.size), _padded(piece.before), _addresses_of(piece.addresses)]
        words.append(_words(len(self.records)))
        for name, record, addresses in self.records:
            words += [_words(len(name)), _padded(name.encode()), _words(len(record))]
            words += [_padded(record), _addresses_of(addresses)]
        digest = 0
        for piece in self.pieces:
            content = bytearray(piece.content())
            for where, _, _ in piece.addresses:
                content[where : where + 8] = bytes(8)
            digest = (digest * 0x100000001B3 + _digest(bytes(content))) & _WORD
        names = tuple(name for name, _, _ in self.records)
        return Replay(data=b"".join(words), after=f"{digest:016x}", calls=names)

    def _addresses(self, record: Any, whose: str) -> list[tuple[int, int, int]]:
        """Of a record or an array: where each stands in it, and where it leads."""
        found: list[tuple[int, int, int]] = []
        if isinstance(record, ctypes.Array):
            size = ctypes.sizeof(record._type_)
            for i in range(len(record)):
                at = ctypes.addressof(record) + i * size
                if record._type_ is ctypes.c_void_p:
                    value = ctypes.c_void_p.from_address(at).value
                    found += [] if value is None else [(i * size, *self._piece(value, whose))]
                else:
                    inner = self._addresses(record._type_.from_address(at), whose)
                    found += [(i * size + where, *leads) for where, *leads in inner]
            return found
        for field, kind in record._fields_:
            value = getattr(record, field)
            if kind is not ctypes.c_void_p or value is None:
                continue
            where = getattr(type(record), field).offset
            nested = self._nested.get(value)
            if nested is None:
                found.append((where, *self._piece(value, f"{whose}.{field}")))
                continue
            number, shift = self._add(value, ctypes.sizeof(nested)), 0
            self.pieces[number].addresses = self._addresses(nested, f"{whose}.{field}")
            found.append((where, number, shift))
        return found

    def _piece(self, address: int, whose: str) -> tuple[int, int]:
        """Number of the piece that holds an address, and how far into it."""
        for start, size in self._slots:
            if start <= address < start + max(size, 1):
                return self._add(start, size), address - start
        beginning = [size for start, size in self._tensors if start == address]
        if beginning:
            return self._held(address, max(beginning))
        around = [one for one in self._tensors if one[0] < address < sum(one)]
        assert around, f"{whose} leads to no tensor that lives"
        start, size = max(around, key=lambda one: one[1])
        return self._add(start, size), address - start

    def _add(self, start: int, size: int) -> int:
        if (start, size) not in self._of:
            self._of[start, size] = len(self.pieces)
            self.pieces.append(Piece(start, size))
        return self._of[start, size]

    def _held(self, address: int, size: int) -> tuple[int, int]:
        """In a piece that is there already, such as a cache whose layers are parts of it."""
        for number, piece in enumerate(self.pieces):
            if piece.start <= address and address + size <= piece.start + piece.size:
                return number, address - piece.start
        return self._add(address, size), 0

    def _check_overlaps(self) -> None:
        """Memory that is written belongs to one piece: else they would differ in a replay."""
        written = [piece for piece in self.pieces if piece.content() != piece.before]
        assert written, "the pass wrote nothing"
        for one in written:
            for other in self.pieces:
                is_apart = (
                    one.start + one.size <= other.start or other.start + other.size <= one.start
                )
                assert one is other or is_apart, (one.start, one.size, other.start, other.size)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from its first element to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((n - 1) * step for n, step in steps)) * tensor.element_size()


def _words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)


def _addresses_of(addresses: list[tuple[int, int, int]]) -> bytes:
    return _words(len(addresses), *(number for one in addresses for number in one))


def _digest(content: bytes) -> int:
    """Of words w: the sum of w times odd numbers, modulo 2^64; no change of one word escapes it."""
    words = np.frombuffer(_padded(content), dtype=np.uint64)
    with np.errstate(over="ignore"):
        odd = (2 * np.arange(len(words), dtype=np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
        return int((words * odd).sum(dtype=np.uint64))


def write(replay: Replay, path: Path) -> Path:
    """The file that replay.cpp reads."""
    path.write_bytes(replay.data)
    return path
