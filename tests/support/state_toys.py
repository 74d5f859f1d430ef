"""Parts of the state machine: naive requests, and a toy slot cache that can fail on request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs

from strategies import BranchingText

MAX_SNAPSHOTS = 4


def row_value(salt: bytes, history: Sequence[int]) -> float:
    """What a row holds: a whole number that float32 keeps exactly."""
    digest = hashlib.sha256(salt + b"|" + ",".join(map(str, history)).encode()).digest()
    return float(int.from_bytes(digest[:3], "big"))


@attrs.define(kw_only=True)
class NaiveRequest:
    """text: what plain decoding would commit, prompt and answer.

    pending: reserved rows that are right. room: rows reserved, scratch included.
    dirty: whether rows were written and then neither committed nor dropped.
    """

    salt: bytes
    text: BranchingText
    num_committed: int = 0
    pending: int = 0
    room: int = 0
    dirty: bool = False

    def forget(self) -> None:
        """The state was lost: prefill again."""
        self.num_committed = self.pending = self.room = 0
        self.dirty = False


class PlantedError(Exception):
    """Raised by the toy cache on request."""


class ToyRecurrentCache:
    """A slot cache: a running hash of all rows, with snapshots at page boundaries.

    Like a short convolution it keeps one column a reserved row until the commit selects one.
    fail_in: the method that raises next, before it does anything.
    """

    def __init__(self) -> None:
        self.states: dict[str, float | None] = {}
        self.lengths: dict[str, int] = {}
        self.room: dict[str, int] = {}
        self.columns: dict[str, list[float]] = {}
        self.snapshots: dict[int, float | None] = {}
        """At most MAX_SNAPSHOTS, so that a published page often has none."""
        self.fail_in: str | None = None

    def _fail(self, method: str) -> None:
        if self.fail_in == method:
            self.fail_in = None
            raise PlantedError(method)

    def claim(self, request_id: str) -> None:
        self._fail("claim")
        assert request_id not in self.states
        self.states[request_id], self.lengths[request_id] = None, 0
        self.room[request_id], self.columns[request_id] = 0, []

    def reserve(self, request_id: str, num_tokens: int) -> None:
        self._fail("reserve")
        self.room[request_id], self.columns[request_id] = num_tokens, []

    def write(self, request_id: str, states: Sequence[float]) -> None:
        assert len(states) <= self.room[request_id]
        self.columns[request_id] = list(states)

    def commit(self, request_id: str, num_tokens: int) -> None:
        self._fail("commit")
        if num_tokens:
            self.states[request_id] = self.columns[request_id][num_tokens - 1]
        self.lengths[request_id] += num_tokens
        self.room[request_id], self.columns[request_id] = 0, []

    def release(self, request_id: str) -> None:
        for of_request in (self.states, self.lengths, self.room, self.columns):
            del of_request[request_id]
        self._fail("release")

    def num_committed(self, request_id: str) -> int:
        assert request_id in self.lengths, "asked of a request it was not told of"
        return self.lengths[request_id]

    def inputs(
        self,
        cache_name: str,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        skip: Sequence[int] | None,
    ) -> None:
        """The toy is written by hand: no pass reads it."""

    def restorable(self, page: int) -> bool:
        return page in self.snapshots

    def restore(self, request_id: str, page: int, num_tokens: int) -> None:
        self._fail("restore")
        assert page in self.snapshots, "asked to restore what it said it cannot"
        self.states[request_id] = self.snapshots[page]
        self.lengths[request_id] = num_tokens

    def keep(self, request_id: str, page: int, num_tokens: int) -> None:
        self._fail("keep")
        past = num_tokens - self.lengths[request_id]
        assert past <= len(self.columns[request_id]), "asked to keep rows that were not written"
        if past == 0:
            self.snapshots[page] = self.states[request_id]
        elif past > 0:
            self.snapshots[page] = self.columns[request_id][past - 1]
        while len(self.snapshots) > MAX_SNAPSHOTS:
            del self.snapshots[next(iter(self.snapshots))]

    def forget(self, page: int) -> None:
        self.snapshots.pop(page, None)

    def clear(self) -> None:
        for kept in (self.states, self.lengths, self.room, self.columns, self.snapshots):
            kept.clear()
