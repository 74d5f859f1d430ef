"""Messages: calls and their arguments as bytes, without pickle.

Knows: tensors, plain values, tuples, lists, dicts, records and enums, and that some objects are
known to both ends by a name. Does not know: who sends, or what the calls do.

A message is a length (8 bytes), a header in JSON, and the bytes of all tensors, each at a multiple
of 8. In the header a plain value is itself; everything else is a list that begins with its kind.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from importlib import import_module
from operator import attrgetter
from typing import Any

import attrs
import torch

Call = tuple[str, tuple[Any, ...]]
"""A method's name and its arguments."""
Key = str | int
"""What both ends call an object that is not sent."""

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_PLAIN = frozenset({type(None), bool, int, float, str})
_SEVERAL: Mapping[type, str] = {tuple: "t", list: "l"}
_DTYPES = {
    str(one).removeprefix("torch."): one
    for one in vars(torch).values()
    if isinstance(one, torch.dtype)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(calls: Sequence[Call], keys: Mapping[int, Key] | None = None) -> bytes:
    """The calls, to be made in this order. keys: of objects that are not sent, by `id`.

    Raises TypeError naming a type that cannot be sent.
    """
    packer = _Packer(keys or {})
    said = [[name, *map(packer.pack, arguments)] for name, arguments in calls]
    header = json.dumps(said, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return b"".join((_LENGTH.pack(len(header)), header, *packer.parts))


def _unknown(key: Key) -> Any:
    raise KeyError(key)


def decode(
    message: bytearray,
    known: Callable[[Key], Any] = _unknown,
    device: torch.device | str = "cpu",
) -> list[tuple[str, Callable[[], tuple[Any, ...]]]]:
    """What `encode` was given: the names of the calls, and what makes the arguments of each.

    The arguments of a call are made when it is its turn, since an earlier one may make what its
    keys stand for. Tensors share the message's memory, but for those of another device. known: the
    objects that keys stand for; KeyError where there are none.
    """
    (length,) = _LENGTH.unpack_from(message)
    start = _LENGTH.size + length
    unpacker = _Unpacker(message, start, known, torch.device(device))
    said = json.loads(message[_LENGTH.size : start])
    return [(name, partial(unpacker.unpack, ["t", *packed])) for name, *packed in said]


class _Packer:
    def __init__(self, keys: Mapping[int, Key]) -> None:
        self.parts: list[bytes] = []
        self._keys = keys
        self._size = 0

    def pack(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._keys:
            return ["k", self._keys[id(value)]]
        if kind in _SEVERAL:
            return [_SEVERAL[kind], *map(self.pack, value)]
        return self._tensor(value) if isinstance(value, torch.Tensor) else self._named(value)

    def _named(self, value: Any) -> list[Any]:
        kind: Any = type(value)
        if kind is bytes:
            return ["b", self._add(value), len(value)]
        if kind is dict:
            return ["d", [self.pack(one) for one in value], *map(self.pack, value.values())]
        if isinstance(value, Enum):
            return ["e", _name_of(kind), value.name]
        if attrs.has(kind):
            name, values_of = _record(kind)
            return ["r", name, *map(self.pack, values_of(value))]
        raise TypeError(
            f"{value!r:.80} is {kind.__module__}.{kind.__qualname__}; wanted what can be sent to "
            "other ranks: tensors, numbers, texts, bytes, None, enums, tuples, lists, dicts and "
            "attrs records"
        )

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        flat = value.detach().reshape(-1)
        is_elsewhere = value.device.type != "cpu"
        if is_elsewhere:
            flat = flat.cpu()
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return ["x", _NAMES[value.dtype], list(value.shape), self._add(data), int(is_elsewhere)]

    def _add(self, data: bytes) -> int:
        place, short = self._size, -len(data) % _ALIGNMENT
        self.parts.append(data + bytes(short) if short else data)
        self._size += len(data) + short
        return place


class _Unpacker:
    def __init__(
        self, message: bytearray, start: int, known: Callable[[Key], Any], device: torch.device
    ) -> None:
        self._message, self._start, self._known, self._device = message, start, known, device

    def unpack(self, packed: Any) -> Any:
        if type(packed) is not list:
            return packed
        kind, *rest = packed
        if kind == "t":
            return tuple(map(self.unpack, rest))
        if kind == "l":
            return [*map(self.unpack, rest)]
        return self._tensor(*rest) if kind == "x" else self._named(kind, *rest)

    def _named(self, kind: str, name: Any, *rest: Any) -> Any:
        if kind == "r":
            made, names = _maker(name)
            return made(**dict(zip(names, map(self.unpack, rest), strict=True)))
        if kind == "k":
            return self._known(name)
        if kind == "e":
            return _found(name)[rest[0]]
        if kind == "d":
            return dict(zip(map(self.unpack, name), map(self.unpack, rest), strict=True))
        begin = self._start + int(name)
        return bytes(self._message[begin : begin + rest[0]])

    def _tensor(self, name: str, shape: list[int], place: int, is_elsewhere: int) -> torch.Tensor:
        dtype, count = _DTYPES[name], 1
        for size in shape:
            count *= size
        if not count:
            made = torch.empty(shape, dtype=dtype)
        else:
            made = torch.frombuffer(
                self._message, dtype=dtype, count=count, offset=self._start + place
            ).view(shape)
        return made.to(self._device) if is_elsewhere else made


@cache
def _name_of(kind: type) -> str:
    """What `_found` finds it by."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    if "<locals>" in name or kind.__module__ == "__main__":
        raise TypeError(
            f"{name} cannot be found by other ranks, which do not run this script; wanted a class "
            "at the top of a module"
        )
    return name


@cache
def _found(name: str) -> Any:
    module, _, qualified = name.partition(":")
    return attrgetter(qualified)(import_module(module))


@cache
def _record(kind: type) -> tuple[str, Callable[[Any], Sequence[Any]]]:
    """The record's name, and what lists the values of its fields."""
    names = [field.name for field in attrs.fields(kind) if field.init]
    return _name_of(kind), lambda value: [getattr(value, name) for name in names]


@cache
def _maker(name: str) -> tuple[Any, tuple[str, ...]]:
    """The record's class, and what its values are called when it is made."""
    kind = _found(name)
    return kind, tuple(field.alias for field in attrs.fields(kind) if field.init)
