"""Traffic: what the ranks of a model tell one another in a pass, before any pass is run.

Knows: the collectives that layers say they make, and the bytes of each. Does not know: layers, or
what carries the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, runtime_checkable

import attrs

CollectiveName = Literal["all_gather", "all_to_all", "all_to_all_rows", "gather"]
Bounds = tuple[int, int]
"""Least and most."""


@attrs.frozen
class PassRows:
    """A pass: its rows and its rows of logits, padding included. itemsize: bytes of a number."""

    rows: int
    logit_rows: int
    itemsize: int


@attrs.frozen
class Collective:
    """One call of every rank of a group.

    least, most: bytes of the tensor that a rank hands over; they differ where routing decides.
    num_ranks: of the group.
    """

    name: CollectiveName
    num_ranks: int
    least: int
    most: int

    @classmethod
    def of(cls, name: CollectiveName, num_ranks: int, num_bytes: int) -> Collective:
        """Of a tensor whose size is known."""
        return cls(name, num_ranks, num_bytes, num_bytes)

    @property
    def sent(self) -> Bounds:
        """Bytes that a rank sends to others; the rank that gathers sends none."""
        if self.name == "all_to_all":
            return self.received
        return self._times(1 if self.name == "gather" else self.num_ranks - 1)

    @property
    def received(self) -> Bounds:
        """Bytes that come in where all come together: on every rank, or on the one that gathers."""
        if self.name == "all_to_all":  # of what a rank hands over each other one gets a part
            others = self.num_ranks - 1
            return self.least // self.num_ranks * others, self.most // self.num_ranks * others
        return self._times(self.num_ranks - 1)

    @property
    def held(self) -> int:
        """Bytes of all ranks' parts, at most, where they come together."""
        return self.most * self.num_ranks

    def _times(self, count: int) -> Bounds:
        return count * self.least, count * self.most


@attrs.frozen
class RowExchange(Collective):
    """An all-to-all of as many rows for each rank as routing decides.

    given, taken: bytes to and from other ranks.
    """

    given: Bounds
    taken: Bounds

    @property
    def sent(self) -> Bounds:
        """As `Collective.sent`."""
        return self.given

    @property
    def received(self) -> Bounds:
        """As `Collective.received`."""
        return self.taken

    @property
    def held(self) -> int:
        """As `Collective.held`, with what this rank hands over."""
        return self.most + self.taken[1]


@runtime_checkable
class Talks(Protocol):
    """A layer that makes collectives of its own."""

    def collectives(self, run: PassRows) -> Sequence[Collective]:
        """Those of one pass, in order; none in a group of one. Layers inside tell theirs."""
        ...


def collectives_of(layers: Iterable[Talks], run: PassRows) -> list[Collective]:
    """Of layers in the order of a pass. layers: of a network, those that talk."""
    return [made for one in layers for made in one.collectives(run)]
