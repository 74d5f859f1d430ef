"""Loads with shards: what they hand over, and which bytes of the file they touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pilotfish.kernels.int4 import dequantize_int4
from pilotfish.kernels.linear import PackedRows
from pilotfish.parallel.shard import Shard
from pilotfish.weights import (
    LoadPlan,
    StoredRows,
    execute_load,
)
from pilotfish.weights.stored_rows import numbers_of

Held = dict[str, Any]
Shards = Mapping[str, Shard]


def read(
    plan: LoadPlan,
    source: Any,
    shards: Shards = MappingProxyType({}),
    dtype: torch.dtype = torch.float32,
    keeps: Callable[[str], bool] | None = None,
) -> Held:
    """Parameter -> a tensor, or StoredRows."""
    found: Held = {}

    def assign(name: str, tensor: Any) -> None:
        assert name not in found
        found[name] = tensor

    execute_load(plan, source, assign, dtype, keeps=keeps, shards=shards)
    return found


def kept(name: str) -> bool:
    return bool(name)


def numbers(held: Any) -> torch.Tensor:
    """What a parameter stands for."""
    if isinstance(held, StoredRows):
        parts = [part_numbers(part) for part in held.parts]
        assert held.shape == tuple(torch.cat(parts).shape)
        return torch.cat(parts)
    assert isinstance(held, torch.Tensor)
    assert held.is_contiguous()
    return held


def part_numbers(part: PackedRows) -> torch.Tensor:
    if part.scale is not None:
        return dequantize_int4(part.blocks, part.scale, torch.float32)
    found = numbers_of(part).float()
    assert found.shape == (part.out_features, part.in_features)
    return found


def ranges_of(draw: Callable[..., Any], size: int, step: int = 1) -> list[range]:
    """Some ranges in any order that do not overlap, with ends at multiples of a step."""
    ends = sorted(draw(st.sets(st.integers(0, size // step), min_size=2, max_size=6)))
    pairs = [range(a * step, b * step) for a, b in pairwise(ends)]
    chosen: list[range] = draw(st.permutations(pairs))
    return chosen[: draw(st.integers(1, len(pairs)))]


class Touched(TorchDispatchMode):
    """A source whose bytes are counted as operators read them, and the most that one of them makes.

    asked: tensors that were loaded. read: bytes of each.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source, self.infos = source, source.infos
        self.asked: list[str] = []
        self.read: Counter[str] = Counter()
        self.most_made = 0
        self._mapped: dict[int, tuple[str, torch.Tensor]] = {}

    def load(self, name: str) -> torch.Tensor:
        return self._known(name, self._source.load(name))

    def load_packed(self, name: str) -> PackedRows | None:
        packed = getattr(self._source, "load_packed", lambda name: None)
        rows: PackedRows | None = packed(name)
        if rows is not None:
            self._known(name, rows.blocks)
        return rows

    def _known(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.asked.append(name)
        self._mapped[tensor.untyped_storage().data_ptr()] = name, tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        taken, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        made, _ = torch.utils._pytree.tree_flatten(found)
        places = {one.untyped_storage().data_ptr() for one in made if torch.is_tensor(one)}
        sources = [one for one in taken if torch.is_tensor(one)]
        known = {one.untyped_storage().data_ptr() for one in sources}
        for one in made:
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() not in known:
                self.most_made = max(self.most_made, one.nbytes)
        for one in sources:
            place = one.untyped_storage().data_ptr()
            if place in self._mapped and place not in places:
                self.read[self._mapped[place][0]] += one.nbytes
        return found


def counted(plan: LoadPlan, source: Any, shards: Shards, **options: Any) -> tuple[Touched, int]:
    """A load, and the bytes that it reads: those copied, and those of rows that stay mapped."""
    touched = Touched(source)
    with touched:
        got = read(plan, touched, shards, **options)
    stay = sum(
        part.blocks.nbytes
        for held in {id(one): one for one in got.values()}.values()
        if isinstance(held, StoredRows)
        for part in held.parts
        if not part.blocks.untyped_storage().resizable()
    )
    return touched, touched.read.total() + stay
