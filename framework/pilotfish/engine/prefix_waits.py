"""PrefixWaits: requests that wait for pages which another one computes.

Knows: names of pages, and how far each request is. Does not know: tensors, budgets or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from pilotfish.engine.request import Request


class NamedPages(Protocol):
    """What is asked of the state; `StateManager` offers it."""

    @property
    def page_size_tokens(self) -> int:
        """Rows of a page."""
        ...

    @property
    def keeps_snapshots(self) -> bool:
        """Whether a hit needs more than pages: a state that is kept where a pass ends."""
        ...

    def page_names(self, keys: Sequence[int], salt: bytes) -> tuple[bytes, ...]:
        """The names of the pages that a prefix hit of these keys may find."""
        ...

    def num_restorable(self, names: Sequence[bytes]) -> int:
        """How many of them, from the first, a request could be given now."""
        ...

    def rows_to_publish(self, num_pages: int) -> int:
        """Rows that a request must have committed for its first pages to be found."""
        ...


class PrefixWaits:
    """A beginning that several requests share is computed by one of them, the leader.

    A request waits while a running one is about to compute the page that it needs next, and only
    so long: it is looked at anew in every pass, and goes on from the page where the two depart, or
    by itself once the leader has ended, failed or given its pages up. A leader never waits, since
    it runs; so there is always progress.
    """

    def __init__(self, state: NamedPages) -> None:
        self._state = state
        self._known: WeakKeyDictionary[Request, tuple[int, bytes, tuple[bytes, ...]]] = (
            WeakKeyDictionary()
        )

    def must_wait(self, request: Request, running: Iterable[Request]) -> bool:
        """Whether one of the running requests computes the page that the request needs next."""
        names = self._names(request)
        if not names:
            return False
        place = self._state.num_restorable(names)
        return place < len(names) and any(
            self._computes(one, place, names[place]) for one in running
        )

    def cut(self, leader: Request, num_rows: int, waiting: Iterable[Request]) -> int:
        """How many of so many rows a leader computes in this pass.

        A state that is kept where passes end must be kept where a waiting request departs.
        """
        if not self._state.keeps_snapshots:
            return num_rows
        mine, done = self._names(leader), leader.num_computed
        for request in waiting:
            pairs = zip(mine, self._names(request), strict=False)
            shared = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if shared is None:
                shared = min(len(mine), len(self._names(request)))
            rows = shared * self._state.page_size_tokens - done
            if 0 < rows < num_rows:
                num_rows = rows
        return num_rows

    def _computes(self, request: Request, place: int, name: bytes) -> bool:
        if request.num_pending <= 1:
            return False
        names = self._names(request)
        return (
            place < len(names)
            and names[place] == name
            and request.num_computed < self._state.rows_to_publish(place + 1)
        )

    def _names(self, request: Request) -> tuple[bytes, ...]:
        keys, salt = request.prefix_keys, request.salt
        known = self._known.get(request)
        if known is None or known[:2] != (len(keys), salt):
            known = self._known[request] = (len(keys), salt, self._state.page_names(keys, salt))
        return known[2]
