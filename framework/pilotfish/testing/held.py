"""held_by: what an object holds on to: bytes of tensors and arrays, and entries of containers.

Knows: attributes, containers, and memory that several tensors share. Does not know: what it is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any

import attrs
import numpy as np
import torch

_CONTAINERS = (list, tuple, deque, Set)


@attrs.frozen
class Held:
    """num_bytes: of memory, a view's whole storage counted once. num_entries: of containers."""

    num_bytes: int
    num_entries: int


def held_by(owner: object) -> Held:
    """All that is reached from an object through attributes and containers."""
    memory: dict[int, int] = {}
    seen: set[int] = set()
    num_entries = 0
    waiting: list[Any] = [owner]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, np.ndarray):
            whole = one.base if isinstance(one.base, np.ndarray) else one
            memory[whole.ctypes.data] = whole.nbytes
        elif isinstance(one, bytes | bytearray):
            memory[id(one)] = len(one)
        else:
            inside = list(_inside(one))
            num_entries += len(inside)
            waiting += inside
    return Held(sum(memory.values()), num_entries)


def _inside(one: Any) -> Iterator[Any]:
    """The values of a container, or of the attributes of an object that a class of its own has."""
    if isinstance(one, Mapping):
        yield from one.values()
    elif isinstance(one, _CONTAINERS):
        yield from one
    elif not isinstance(one, type) and type(one).__module__.partition(".")[0] not in _NO_OWNERS:
        yield from getattr(one, "__dict__", {}).values()
        for kind in type(one).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(one, name):
                    yield getattr(one, name)


_NO_OWNERS = ("builtins", "torch", "numpy", "types")
