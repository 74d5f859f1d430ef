"""The lifecycle over tiny pools against the naive model, and mutants that the model catches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from pilotfish.state.manager import StateManager
from pilotfish.state.paged import PagedCache
from pilotfish.state.pages import PagePool
from pilotfish.state.prefix import PrefixIndex, PrefixMatch
from pilotfish.state.request_blocks import FullPage, RequestBlocks
from pilotfish.state.slot_caches import SlotCaches
from pilotfish.state.tables import PageTables
from strategies import PoolGeometry, pool_geometries
from support.state_hunt import ALARMS, HUNT
from support.state_model import StateMachine

TestStateMachine = StateMachine.TestCase
TestStateMachine.settings = settings(max_examples=120, stateful_step_count=40)

Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Plant] = {}


def mutant(plant: Plant) -> Plant:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def published_before_commit(patch: pytest.MonkeyPatch) -> None:
    reserve = StateManager.reserve

    def early(self: StateManager, request_id: str, keys: Sequence[int], scratch: int = 0) -> None:
        reserve(self, request_id, keys, scratch)
        request = self._requests[request_id]
        for page in request.full_pages(request.tail + request.reserved, self.index):
            if page.is_new and self.prefix_caching:
                self.index.publish(page.name, page.page)
                self.pool.publish(page.page)

    patch.setattr(StateManager, "reserve", early)


@mutant
def shared_without_a_reference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "share", lambda self, page: self._cached.pop(page, None))


@mutant
def shared_page_stays_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    def share(self: PagePool, page: int) -> None:
        self._refcounts[page] += 1

    patch.setattr(PagePool, "share", share)


@mutant
def commit_counts_one_too_many(patch: pytest.MonkeyPatch) -> None:
    commit = StateManager.commit

    def more(self: StateManager, request_id: str, num_tokens: int) -> None:
        reserved = self.num_reserved(request_id)
        commit(self, request_id, num_tokens)
        request = self._requests[request_id]
        request.num_committed += num_tokens < reserved

    patch.setattr(StateManager, "commit", more)


@mutant
def commit_keeps_one_more_row(patch: pytest.MonkeyPatch) -> None:
    commit = StateManager.commit

    def more(self: StateManager, request_id: str, num_tokens: int) -> None:
        commit(self, request_id, min(num_tokens + 1, self.num_reserved(request_id)))

    patch.setattr(StateManager, "commit", more)


@mutant
def shared_page_goes_to_the_free_list(patch: pytest.MonkeyPatch) -> None:
    def free(self: PagePool, page: int) -> bool:
        self._refcounts[page] -= 1
        self._free.append(page)
        return True

    patch.setattr(PagePool, "free", free)


@mutant
def hit_covers_rejected_rows(patch: pytest.MonkeyPatch) -> None:
    full_pages = RequestBlocks.full_pages

    def all_reserved(
        self: RequestBlocks, tail: Sequence[int], index: PrefixIndex
    ) -> list[FullPage]:
        return full_pages(self, [*self.tail, *self.reserved], index) if tail else []

    patch.setattr(RequestBlocks, "full_pages", all_reserved)


@mutant
def hit_covers_scratch_of_the_last_page(patch: pytest.MonkeyPatch) -> None:
    full_pages = RequestBlocks.full_pages

    def one_early(self: RequestBlocks, tail: Sequence[int], index: PrefixIndex) -> list[FullPage]:
        if index.page_size_tokens > 1 and len(tail) % index.page_size_tokens:
            padded = [*tail, *[0] * (-len(tail) % index.page_size_tokens)]
            return full_pages(self, padded, index)
        return full_pages(self, tail, index)

    patch.setattr(RequestBlocks, "full_pages", one_early)


@mutant
def hit_covers_the_whole_prompt(patch: pytest.MonkeyPatch) -> None:
    match = PrefixIndex.match

    def whole(self: PrefixIndex, keys: Sequence[int], salt: bytes = b"") -> PrefixMatch:
        return match(self, [*keys, 0] if not self.lookahead else keys, salt)

    patch.setattr(PrefixIndex, "match", whole)


@mutant
def draft_rows_shared_without_lookahead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixIndex, "name", lambda self, chain, next_keys: chain)


@mutant
def page_named_by_its_keys_alone(patch: pytest.MonkeyPatch) -> None:
    extend = PrefixIndex.extend
    patch.setattr(PrefixIndex, "extend", lambda self, chain, keys: extend(self, b"", keys))


@mutant
def salt_is_ignored(patch: pytest.MonkeyPatch) -> None:
    root = PrefixIndex.root
    patch.setattr(PrefixIndex, "root", lambda self, salt=b"": root(self, b""))


@mutant
def evicted_page_can_still_be_found(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StateManager, "_forget_page", lambda self, page: None)


@mutant
def evicted_page_keeps_its_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotCaches, "forget", lambda self, page: None)


@mutant
def hit_that_a_cache_cannot_restore(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotCaches, "restorable", lambda self, page: True)


@mutant
def hit_that_a_cache_was_not_told(patch: pytest.MonkeyPatch) -> None:
    claim = SlotCaches.claim

    def untold(self: SlotCaches, request_id: str, *hit: object) -> None:
        claim(self, request_id)

    patch.setattr(SlotCaches, "claim", untold)


@mutant
def failed_commit_leaves_lengths_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotCaches, "reset", lambda self, request_id, full: None)


@mutant
def failed_reserve_keeps_its_pages(patch: pytest.MonkeyPatch) -> None:
    reserve = StateManager.reserve

    def grow_first(self: StateManager, request_id: str, keys: Any, scratch: int = 0) -> None:
        request = self._requests[request_id]
        rows = request.num_committed + len(keys) + scratch
        wanted = -(-rows // self.page_size_tokens)
        if wanted > len(request.pages):
            self._grow(request_id, request, wanted)
        reserve(self, request_id, keys, scratch)

    patch.setattr(StateManager, "reserve", grow_first)


@mutant
def failed_reserve_leaves_the_first_caches_told(patch: pytest.MonkeyPatch) -> None:
    def reserve(self: SlotCaches, request_id: str, num_rows: int, num_before: int) -> None:
        for cache in self._caches:
            cache.reserve(request_id, num_rows)

    patch.setattr(SlotCaches, "reserve", reserve)


@mutant
def failed_claim_stays_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    def claim(
        self: SlotCaches, request_id: str, page: int | None = None, num_tokens: int = 0
    ) -> None:
        for cache in self._caches:
            cache.claim(request_id)
            if page is not None:
                cache.restore(request_id, page, num_tokens)

    patch.setattr(SlotCaches, "claim", claim)


@mutant
def failed_release_keeps_the_pages(patch: pytest.MonkeyPatch) -> None:
    def caches_first(self: StateManager, request_id: str) -> None:
        request = self._request(request_id)
        self._slot_caches.release(request_id)
        del self._requests[request_id]
        self._shrink(request, 0)
        self._tables.release_row(request.row)

    patch.setattr(StateManager, "release", caches_first)


@mutant
def failed_release_stops_at_the_first_cache(patch: pytest.MonkeyPatch) -> None:
    def release(self: SlotCaches, request_id: str) -> None:
        for cache in self._caches:
            cache.release(request_id)

    patch.setattr(SlotCaches, "release", release)


@mutant
def out_of_pages_after_taking_some(patch: pytest.MonkeyPatch) -> None:
    allocate = PagePool.allocate

    def greedy(self: PagePool, count: int, on_evict: Callable[[int], None]) -> list[int]:
        if count > self.num_available:
            allocate(self, self.num_available, on_evict)
        return allocate(self, count, on_evict)

    patch.setattr(PagePool, "allocate", greedy)


@mutant
def table_is_not_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageTables, "write", lambda self, row, start, pages: None)


@mutant
def freed_entry_stays_in_the_table(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageTables, "cut", lambda self, row, start, stop: None)


@mutant
def write_slot_off_by_one_at_the_page_size(patch: pytest.MonkeyPatch) -> None:
    def slots(pages: Sequence[int], start: int, count: int, size: int) -> list[int]:
        return [
            pages[min((row + 1) // size, len(pages) - 1)] * size + row % size
            for row in range(start, start + count)
        ]

    patch.setattr("pilotfish.state.manager.write_slots", slots)


@mutant
def scratch_survives_a_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedCache, "poison_rows", lambda self, page, start, stop: None)


@mutant
def skip_is_ignored(patch: pytest.MonkeyPatch) -> None:
    kv_inputs = StateManager.kv_inputs

    def unskipped(
        self: StateManager, request_ids: Any, row_counts: Any, cache_name: str, *_: Any
    ) -> Any:
        return kv_inputs(self, request_ids, row_counts, cache_name)

    patch.setattr(
        StateManager,
        "kv_inputs",
        lambda self, ids, counts, cache_name="kv", skip=None: unskipped(
            self, ids, counts, cache_name
        ),
    )


class DraftMachine(StateMachine):
    """The machine without slot caches, whose few snapshots would cut most hits of a draft short."""

    @initialize(geometry=pool_geometries().filter(lambda pool: pool.lookahead > 0))
    def make(self, geometry: PoolGeometry) -> None:
        super().make(geometry=geometry, num_slot_caches=0, conv=None)


class FaultMachine(StateMachine):
    """The machine with two slot caches that fail, and no real one to be compared row by row."""

    @initialize(geometry=pool_geometries())
    def make(self, geometry: PoolGeometry) -> None:
        super().make(geometry=geometry, num_slot_caches=2, conv=None)


HUNTERS = {
    "draft_rows_shared_without_lookahead": DraftMachine,
    "failed_commit_leaves_lengths_apart": FaultMachine,
    "failed_release_stops_at_the_first_cache": FaultMachine,
    "failed_reserve_keeps_its_pages": FaultMachine,
    "failed_reserve_leaves_the_first_caches_told": FaultMachine,
}
"""Of bugs that the machine shows so seldom that a narrower one is asked."""


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises(ALARMS):
        run_state_machine_as_test(HUNTERS.get(name, StateMachine), settings=HUNT)


def test_nothing_is_caught_where_nothing_is_planted() -> None:
    run_state_machine_as_test(StateMachine, settings=settings(HUNT, max_examples=150))
