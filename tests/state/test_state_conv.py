"""Mutants of the convolution cache, which the state machine must catch among the pages.

The machine runs a real cache through the real kernel, beside pages and toy caches: rejections,
prefix hits, preemption, tiny pools and failing calls, several requests in a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from pilotfish.state import SlotPool
from pilotfish_lfm2.cache import ConvStateCache
from strategies import PoolGeometry, pool_geometries
from support.state_conv import ConvShape, conv_shapes
from support.state_hunt import ALARMS, HUNT
from support.state_model import StateMachine

Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Plant] = {}


class ConvMachine(StateMachine):
    """The machine without toys, whose few snapshots would cut most hits short."""

    @initialize(
        geometry=pool_geometries().map(lambda pool: attrs.evolve(pool, prefix_caching=True)),
        conv=conv_shapes().filter(lambda shape: shape is not None),
    )
    def make(self, geometry: PoolGeometry, conv: ConvShape) -> None:
        super().make(geometry=geometry, num_slot_caches=0, conv=conv)


def mutant(plant: Plant) -> Plant:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def rejected_columns_stay(patch: pytest.MonkeyPatch) -> None:
    commit = ConvStateCache.commit

    def all_rows(self: ConvStateCache, request_id: str, num_tokens: int) -> None:
        reserved = self._request(request_id).num_reserved
        commit(self, request_id, reserved)
        self._request(request_id).num_committed -= reserved - num_tokens

    patch.setattr(ConvStateCache, "commit", all_rows)


@mutant
def window_stays_where_it_was(patch: pytest.MonkeyPatch) -> None:
    commit = ConvStateCache.commit

    def still(self: ConvStateCache, request_id: str, num_tokens: int) -> None:
        request = self._request(request_id)
        first, is_long = request.first, request.strip is not None
        commit(self, request_id, num_tokens)
        if not is_long:
            request.first = first

    patch.setattr(ConvStateCache, "commit", still)


@mutant
def rows_overwrite_the_window(patch: pytest.MonkeyPatch) -> None:
    init = ConvStateCache.__init__

    def small(self: ConvStateCache, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.ring = max(1, self.ring - self.width)

    patch.setattr(ConvStateCache, "__init__", small)


@mutant
def hit_without_its_columns(patch: pytest.MonkeyPatch) -> None:
    def restore(self: ConvStateCache, request_id: str, page: int, num_tokens: int) -> None:
        self._request(request_id).num_committed = num_tokens

    patch.setattr(ConvStateCache, "restore", restore)


@mutant
def columns_of_an_evicted_page_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConvStateCache, "forget", lambda self, page: None)


@mutant
def columns_are_kept_one_row_late(patch: pytest.MonkeyPatch) -> None:
    keep = ConvStateCache.keep
    patch.setattr(ConvStateCache, "keep", lambda self, name, page, n: keep(self, name, page, n + 1))


@mutant
def slot_is_given_out_twice(patch: pytest.MonkeyPatch) -> None:
    claim = SlotPool.claim

    def twice(self: SlotPool, request_id: str) -> int:
        slot = claim(self, request_id)
        self._free.insert(0, slot)
        return slot

    patch.setattr(SlotPool, "claim", twice)


@mutant
def slot_is_not_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotPool, "release", lambda self, request_id: self._slot_of.pop(request_id))


@mutant
def preempted_request_finds_its_old_columns(patch: pytest.MonkeyPatch) -> None:
    claim, release = ConvStateCache.claim, ConvStateCache.release

    def unclean(self: ConvStateCache, request_id: str) -> None:
        before = self.memory.nan_to_num(nan=0.0)
        claim(self, request_id)
        self.memory.copy_(before)

    def untouched(self: ConvStateCache, request_id: str) -> None:
        before = self.memory.clone()
        release(self, request_id)
        self.memory.copy_(before)

    patch.setattr(ConvStateCache, "claim", unclean)
    patch.setattr(ConvStateCache, "release", untouched)


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises(ALARMS):
        run_state_machine_as_test(ConvMachine, settings=HUNT)


def test_nothing_is_caught_where_nothing_is_planted() -> None:
    run_state_machine_as_test(ConvMachine, settings=settings(HUNT, max_examples=60))
