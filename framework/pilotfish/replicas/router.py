"""Router: which replica a request goes to.

Knows: names of pages, counts of requests and tokens. Does not know: processes, or what pages hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

import attrs


@attrs.define(eq=False)
class Load:
    """What one replica has to do, and which pages it may still hold, the oldest first."""

    num_requests: int = 0
    num_tokens: int = 0
    names: OrderedDict[bytes, None] = attrs.field(factory=OrderedDict)


class Router:
    """Sends a request where its beginning was computed, else to the emptiest replica.

    A replica has a request's beginning where that was sent there and is half of it or more: a few
    shared words draw nobody. One that already has as many requests as run at once is passed over
    for one that has fewer. The emptiest has the fewest requests, of equals the fewest tokens, then
    the most of the beginning.

    num_pages: that each replica holds, and as many names of pages are remembered of it.
    max_batch_size: requests that run at once on one.
    """

    def __init__(self, num_replicas: int, *, num_pages: int, max_batch_size: int) -> None:
        self.loads = tuple(Load() for _ in range(num_replicas))
        self._num_pages, self._max_batch_size = num_pages, max_batch_size

    def choose(self, names: Sequence[bytes], among: Collection[int]) -> int:
        """The number of a replica. names: of the request's pages, from the first. among: at least
        one number.
        """
        held = {number: self.num_held(number, names) for number in among}

        def place(number: int) -> tuple[int, int, int, int]:
            load = self.loads[number]
            return load.num_requests, load.num_tokens, -held[number], number

        emptiest, most = min(among, key=place), max(held.values())
        if not most or 2 * most < len(names):
            return emptiest
        owner = min((number for number in among if held[number] == most), key=place)
        is_full = self.loads[owner].num_requests >= self._max_batch_size
        return emptiest if is_full else owner

    def num_held(self, number: int, names: Iterable[bytes]) -> int:
        """How many of the pages, from the first, a replica may hold."""
        known = self.loads[number].names
        return sum(1 for _ in takewhile(known.__contains__, names))

    def begin(self, number: int, names: Sequence[bytes], num_tokens: int) -> None:
        """A request of so many tokens, prompt and answer, was sent to a replica."""
        load = self.loads[number]
        load.num_requests += 1
        load.num_tokens += num_tokens
        self._remember(load, names)

    def end(self, number: int, names: Sequence[bytes], num_tokens: int) -> None:
        """It has ended there. names: of the pages that its prompt and answer fill."""
        load = self.loads[number]
        load.num_requests -= 1
        load.num_tokens -= num_tokens
        self._remember(load, names)

    def recount(self, running: Iterable[tuple[int, int]]) -> None:
        """What was begun and has not ended: the replica and the tokens of each request."""
        for load in self.loads:
            load.num_requests = load.num_tokens = 0
        for number, num_tokens in running:
            self.loads[number].num_requests += 1
            self.loads[number].num_tokens += num_tokens

    def forget_pages(self, number: int) -> None:
        """A replica's pages are empty."""
        self.loads[number].names.clear()

    def _remember(self, load: Load, names: Sequence[bytes]) -> None:
        """The last page is the oldest: without those before it, it is of no use."""
        for name in reversed(names):
            load.names[name] = None
            load.names.move_to_end(name)
        while len(load.names) > self._num_pages:
            load.names.popitem(last=False)
