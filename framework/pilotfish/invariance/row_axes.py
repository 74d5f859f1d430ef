"""RowAxes: which axes of a call's tensors are the rows of the pass, found with two numbers of rows.

Knows: what follows the number of rows in every call of one place in the code, and what merely is as
large: keys, heads, positions. Does not know: what the calls compute.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

import attrs
import torch

Axis = tuple[int, int]
"""Which of a call's tensors, and which of its axes."""


@attrs.frozen
class Rows:
    """An axis of a tensor that is rows. each: how many of its places a row has; count: rows."""

    axis: int
    each: int
    count: int

    def cut(self, x: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """Some rows of it."""
        places = slice(first * self.each, (first + count) * self.each)
        return x[(slice(None),) * self.axis + (places,)]


class RowAxes:
    """Sizes of axes, seen in a pass of another number of rows than the one that is asked about."""

    def __init__(self) -> None:
        self._each: dict[Hashable, dict[Axis, set[int]]] = {}

    def measure(self, site: Hashable, leaves: Sequence[Any], num_rows: Collection[int]) -> None:
        """Notes a call. site: where it is made. num_rows: of the pass, padded or not.

        An axis that is no multiple of them in one call of a place is rows in none: it grows with
        the keys of a row, say, and is as large as the pass by chance.
        """
        known = self._each.setdefault(site, {})
        for axis, size in _axes(leaves):
            each = {size // n for n in num_rows if size and size % n == 0}
            if axis not in known or not known[axis] or not each:
                known[axis] = each if axis not in known else set()
            else:
                known[axis] |= each

    def of(
        self, site: Hashable, leaves: Sequence[Any], num_rows: Collection[int]
    ) -> dict[int, Rows]:
        """Which of a call's tensors have rows, by their places among the leaves.

        num_rows: of this pass. Empty for a place that was not called in the other pass.
        """
        found: dict[int, Rows] = {}
        known = self._each.get(site, {})
        for (place, axis), size in _axes(leaves):
            for n in num_rows:
                is_rows = size and size % n == 0 and size // n in known.get((place, axis), ())
                if is_rows and place not in found:
                    found[place] = Rows(axis, size // n, n)
        return found


def _axes(leaves: Sequence[Any]) -> Iterator[tuple[Axis, int]]:
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            for axis, size in enumerate(leaf.shape):
                yield (place, axis), size
