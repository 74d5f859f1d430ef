"""Lockstep: passes that ranks with rows of their own make together, one round after the other.

Knows: who wants a pass, and that all take part in its exchanges. Does not know: models, engines, or
what is exchanged.

Replicas that share their experts run passes at different times, and every exchange is of all of
them. So a pass of any of them is a round of all: before it they tell one another who has rows, and
who has none goes from exchange to exchange without any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Group
from pilotfish.parallel.traffic import Collective

Look = Callable[[], tuple[bool, int]]
"""Reads what has come: whether this replica has rows, and of how many requests it has heard, its
own and others'."""


class Exchanges(Protocol):
    """A layer in which ranks exchange rows."""

    def take_part(self) -> None:
        """Its exchange, without rows of this rank's."""
        ...


class Lockstep:
    """group: ranks that exchange rows. layers: in which they do, in the order of a pass.

    Where some of the ranks share one replica, they say the same in every round.
    """

    def __init__(self, group: Group, layers: Sequence[Exchanges]) -> None:
        self.group, self.layers = group, tuple(layers)

    def begin_round(self, *, is_agreed: bool = False) -> None:
        """Before a pass with rows of this rank's, which goes through all exchanges.

        is_agreed: whether all ranks know of this round without asking. A pass that raises leaves
        others in an exchange: this rank has to end then, and they get ConnectionError.
        """
        if not is_agreed:
            self._said(True, 0)

    def take_part(self) -> None:
        """A round without rows of this rank's, of which all ranks know."""
        for layer in self.layers:
            layer.take_part()

    def idle_round(self, joins: int) -> bool:
        """A round in which this rank has no rows, if another has some.

        joins: of how many requests this replica has heard. Returns False where nobody has rows and
        all have heard of as many: every rank gets the same answer, so all leave together.
        """
        said = self._said(False, joins)
        if any(wants for wants, _ in said):
            self.take_part()
            return True
        return len({heard for _, heard in said}) > 1

    def _said(self, wants: bool, joins: int) -> list[list[int]]:
        own = torch.tensor([wants, joins], dtype=torch.int64)
        return [one.tolist() for one in all_gather(self.group, own)]


def agreement(group: Group) -> Collective:
    """What a round begins with."""
    return Collective.of("all_gather", group.size, 2 * torch.int64.itemsize)


def serve_idle(idle_round: Callable[[int], bool], look: Look) -> bool:
    """Takes part in the rounds of other replicas while this one has no rows.

    idle_round: the model's. look: asked before each round; it must not wait.
    Returns True when this replica has rows; False when none has: all have left together then, and
    whoever hears of another request joins again, with a number of `joins` that is one higher.
    """
    while True:
        wants, joins = look()
        if wants:
            return True
        if not idle_round(joins):
            return False
