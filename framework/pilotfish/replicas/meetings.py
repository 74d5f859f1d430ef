"""Meetings: what replicas that share experts are told of one another.

Knows: which share, where they meet, and of how many requests all have heard. Does not know: which
replicas are there, or how they are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.config import ParallelConfig
from pilotfish.ranks.messages import encode
from pilotfish.ranks.start_up import open_store
from pilotfish.replicas.tasks import JOIN, MEET

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]


class Meetings:
    """Of one model. timeout_s: after which a replica that does not come is given up."""

    def __init__(self, parallel: ParallelConfig, timeout_s: float) -> None:
        self._count = max(1, parallel.num_expert_ranks // parallel.num_ranks)
        self._timeout_s = timeout_s
        self._num_joins = 0
        self._stores: dict[int, TCPStore] = {}

    def sharing(self, number: int) -> range:
        """The replicas that share experts with one, and itself."""
        first = number // self._count * self._count
        return range(first, first + self._count)

    def meet(self, number: int, host: str) -> bytes | None:
        """What a replica is told, and those that it shares experts with, when all are ready: where
        they meet, which is another place each time. None where it shares none.
        """
        if self._count == 1:
            return None
        store = self._stores[self.sharing(number).start] = open_store(host, self._timeout_s)
        return encode([(MEET, (host, store.port, self._num_joins))])

    def join(self) -> bytes | None:
        """What they are told when one of them has another request."""
        if self._count == 1:
            return None
        self._num_joins += 1
        return encode([(JOIN, (self._num_joins,))])

    def close(self) -> None:
        """Nobody meets any more."""
        self._stores.clear()
