"""Bugs that real caches shipped, planted on purpose: the histories must see each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lfm2.driver import load
from lfm2.histories import Histories, Plain, serve_in_turn
from pilotfish.kernels.short_conv import eager
from pilotfish_lfm2.cache import ConvStateCache
from pilotfish_lfm2.model import LFM2Model

Checkpoint = Callable[[str], Path]
Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Plant] = {}

HUNT = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
"""Fixed draws, no shrinking: a mutant falls to the same history on every run."""


def mutant(plant: Plant) -> Plant:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def rejected_rows_stay(patch: pytest.MonkeyPatch) -> None:
    commit = ConvStateCache.commit

    def all_rows(self: ConvStateCache, request_id: str, num_tokens: int) -> None:
        reserved = self._request(request_id).num_reserved
        commit(self, request_id, reserved)
        self._request(request_id).num_committed -= reserved - num_tokens

    patch.setattr(ConvStateCache, "commit", all_rows)


@mutant
def a_step_without_accepts_keeps_one_row(patch: pytest.MonkeyPatch) -> None:
    commit = ConvStateCache.commit

    def one_row(self: ConvStateCache, request_id: str, num_tokens: int) -> None:
        request = self._request(request_id)
        if num_tokens == 0 and request.num_reserved and request.strip is None:
            request.first += 1
        commit(self, request_id, num_tokens)

    patch.setattr(ConvStateCache, "commit", one_row)


@mutant
def rows_overwrite_the_window(patch: pytest.MonkeyPatch) -> None:
    """A ring with no room for the window beside the rows of a pass."""
    init = ConvStateCache.__init__

    def small(self: ConvStateCache, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.ring -= 3

    patch.setattr(ConvStateCache, "__init__", small)


@mutant
def window_of_a_long_pass_is_one_row_off(patch: pytest.MonkeyPatch) -> None:
    set_window = ConvStateCache._set_window

    def off(self: ConvStateCache, request: Any, window: torch.Tensor) -> None:
        set_window(self, request, window if request.strip is None else window.roll(1, dims=1))

    patch.setattr(ConvStateCache, "_set_window", off)


@mutant
def long_pass_starts_without_its_window(patch: pytest.MonkeyPatch) -> None:
    reserve = ConvStateCache.reserve

    def fresh(self: ConvStateCache, request_id: str, num_tokens: int) -> None:
        reserve(self, request_id, num_tokens)
        strip = self._request(request_id).strip
        if strip is not None:
            strip[:, : self.width] = 0

    patch.setattr(ConvStateCache, "reserve", fresh)


@mutant
def slot_keeps_the_columns_of_its_last_owner(patch: pytest.MonkeyPatch) -> None:
    claim = ConvStateCache.claim

    def unclean(self: ConvStateCache, request_id: str) -> None:
        before = self.memory.nan_to_num(nan=0.0)
        claim(self, request_id)
        self.memory.copy_(before)

    def untouched(self: ConvStateCache, request_id: str) -> None:
        self.slots.release(request_id)
        del self._requests[request_id]

    patch.setattr(ConvStateCache, "claim", unclean)
    patch.setattr(ConvStateCache, "release", untouched)


@mutant
def states_of_two_requests_are_exchanged(patch: pytest.MonkeyPatch) -> None:
    inputs = ConvStateCache.inputs

    def exchanged(self: ConvStateCache, cache_name: str, request_ids: Any, *rest: Any) -> Any:
        bases = [self._request(name).base for name in request_ids]
        for name, base in zip(request_ids, reversed(bases), strict=True):
            self._request(name).base = base
        made = inputs(self, cache_name, request_ids, *rest)
        for name, base in zip(request_ids, bases, strict=True):
            self._request(name).base = base
        return made

    patch.setattr(ConvStateCache, "inputs", exchanged)


@mutant
def hit_without_its_columns(patch: pytest.MonkeyPatch) -> None:
    def restore(self: ConvStateCache, request_id: str, page: int, num_tokens: int) -> None:
        self._request(request_id).num_committed = num_tokens

    patch.setattr(ConvStateCache, "restore", restore)


@mutant
def hit_where_nothing_is_kept(patch: pytest.MonkeyPatch) -> None:
    """Every page is called restorable; only whole passes were kept."""
    keep = ConvStateCache.keep

    def seldom(self: ConvStateCache, request_id: str, page: int, num_tokens: int) -> None:
        if num_tokens % 8:
            keep(self, request_id, page, num_tokens)
        self._is_kept[page] = 1

    patch.setattr(ConvStateCache, "keep", seldom)


@mutant
def boundary_keeps_the_end_of_the_pass(patch: pytest.MonkeyPatch) -> None:
    keep = ConvStateCache.keep

    def late(self: ConvStateCache, request_id: str, page: int, num_tokens: int) -> None:
        request = self._request(request_id)
        keep(self, request_id, page, request.num_committed + request.num_reserved)

    patch.setattr(ConvStateCache, "keep", late)


@mutant
def evicted_page_keeps_its_columns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConvStateCache, "forget", lambda self, page: None)


@mutant
def columns_are_gathered_before_they_are_written(patch: pytest.MonkeyPatch) -> None:
    gathered = eager._gathered

    def early(u: torch.Tensor, weight: Any, bias: Any, columns: Any, layer: int) -> torch.Tensor:
        before = columns.memory[layer].nan_to_num(nan=0.0).clone()
        gathered(u, weight, bias, columns, layer)
        written = columns.memory[layer].clone()
        columns.memory[layer].copy_(before)
        zero = torch.zeros_like(u)
        out = gathered(zero, weight, bias, columns, layer)
        columns.memory[layer].copy_(written)
        return out

    patch.setattr(eager, "_gathered", early)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> LFM2Model:
    return load(checkpoint("plain"))


def hunt(loaded: LFM2Model) -> None:
    model = Plain(loaded)

    @HUNT
    @given(data=st.data(), prefix_caching=st.booleans())
    def play(data: st.DataObject, prefix_caching: bool) -> None:
        Histories(model, data, prefix_caching=prefix_caching).play(num_passes=10)

    serve_in_turn(loaded)
    play()


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(
    name: str, model: LFM2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises(AssertionError):
        hunt(model)
