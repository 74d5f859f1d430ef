"""Shard: what of a parameter a rank holds.

Knows: an axis and ranges along it. Does not know: files, groups or layers.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch

Shape = tuple[int, ...]


def _as_ranges(value: Iterable[range]) -> tuple[range, ...]:
    return tuple(one for one in value if one)


@attrs.frozen
class Shard:
    """axis: 0 for rows, 1 for columns. ranges: what is held along it, one after the other."""

    axis: int
    ranges: tuple[range, ...] = attrs.field(converter=_as_ranges)

    @classmethod
    def rows(cls, *ranges: range) -> Shard:
        """Some of the rows; without any, nothing of the parameter is held."""
        return cls(0, ranges)

    @classmethod
    def columns(cls, *ranges: range) -> Shard:
        """Some of the columns."""
        return cls(1, ranges)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: the parameter is not read."""
        return not self.ranges

    def shape(self, whole: Shape) -> Shape:
        """Of what is held of a parameter of this shape."""
        held = sum(map(len, self.ranges))
        return (*whole[: self.axis], held, *whole[self.axis + 1 :])

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """What is held of a parameter; a view where it is one range."""
        parts = [whole.narrow(self.axis, one.start, len(one)) for one in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.axis)
