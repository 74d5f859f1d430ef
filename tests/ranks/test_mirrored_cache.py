"""MirroredCache: a worker's cache, told late and all at once, holds what the driver's holds."""

from __future__ import annotations

import gc
import random
from contextlib import suppress
from typing import Any

import pytest
import torch

from pilotfish.errors import StateError
from pilotfish.ranks.cache_copies import CacheCopies
from pilotfish.ranks.messages import Call, Key, decode, encode
from pilotfish.ranks.mirrored_cache import MirroredCache
from pilotfish.state import StateManager
from pilotfish_lfm2.cache import ConvStateCache

PAGES, SIZE, SLOTS = 8, 4, 3


class Planted(Exception):
    """What a failing cache raises."""


class Pair:
    """A state over a mirrored cache, and the worker's copy of that cache."""

    def __init__(self) -> None:
        make = lambda: ConvStateCache(  # noqa: E731
            *(2, 3, 3, torch.float32, SLOTS, "cpu"), rows_in_place=5, num_pages=PAGES, poison=True
        )
        self.log: list[Call] = []
        self.keys: dict[int, Key] = {}
        self.own, self.copy = make(), make()
        self.cache: Any = MirroredCache(self.own, "conv", self.log, self.keys)
        self.copies = CacheCopies({"conv": self.copy})
        self.state = StateManager(
            num_pages=PAGES, page_size_tokens=SIZE, slot_caches=[self.cache], device="cpu"
        )

    def tell(self, *views: Any) -> tuple[Any, ...]:
        """Sends what is noted, and a call with some views; returns what the worker finds."""
        message = encode([*self.log, ("pass", views)], self.keys)
        self.log.clear()
        for name, arguments in decode(bytearray(message), self.copies.views.__getitem__):
            if name == "pass":
                return arguments()
            getattr(self.copies, name)(*arguments())
        raise AssertionError

    def run(self, view: Any, value: float) -> None:
        """A pass that writes its rows, here and there."""
        (theirs,) = self.tell(view)
        for one in (view, theirs):
            for layer in one.memory:
                layer[one.own] = value + torch.arange(len(one.own)).unsqueeze(1)
            for run in one.runs:
                for layer in run.memory:
                    first = run.start + self.own.width - 1
                    layer[first : first + run.num_rows] = value

    def agree(self) -> bool:
        self.tell()
        pairs = (self.own.memory, self.copy.memory), (self.own.kept, self.copy.kept)
        return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_any_history_leaves_both_alike(seed: int) -> None:
    draw, pair = random.Random(seed), Pair()
    live: dict[str, int] = {}
    for number in range(150):
        act = draw.choice(["claim", "step", "step", "step", "release", "spoil", "reset"])
        if act == "claim":
            name = f"r{number}"
            with suppress(StateError):  # no slot is free
                keys = [draw.randrange(2) for _ in range(draw.randrange(14))]
                live[name] = pair.state.claim(name, keys)
        elif act == "release" and live:
            pair.state.release(live.popitem()[0])
        elif act == "reset" and not draw.randrange(5):
            pair.state.reset()
            live.clear()
        elif act == "spoil":
            for call in (
                lambda: pair.cache.claim(next(iter(live), "nobody")),
                lambda: pair.cache.commit("nobody", 1),
                lambda: pair.cache.restore(next(iter(live), "nobody"), PAGES - 1, 4),
            ):
                with suppress(StateError):
                    call()
        elif act == "step" and live:
            names = [name for name in live if draw.randrange(3)] or [next(iter(live))]
            counts = [draw.choice([1, 2, 4, 7]) for _ in names]
            try:
                for name, count in zip(names, counts, strict=True):
                    pair.state.reserve(name, [draw.randrange(2) for _ in range(count)], scratch=1)
            except StateError:  # no page is free
                pair.state.reset()
                live.clear()
                continue
            view = pair.cache.inputs("kv", names, counts, None)
            pair.run(view, float(number))
            if draw.randrange(2):
                pair.run(view.next_row(), number + 0.5)
            for name, count in zip(names, counts, strict=True):
                pair.state.commit(name, draw.randint(0, count))
        if draw.randrange(2):
            assert pair.agree(), f"act {number}: {act}"
    assert pair.agree()
    del view
    gc.collect()
    pair.tell()
    assert pair.keys == {}
    assert pair.copies.views == {}


def test_views_are_what_the_cache_makes() -> None:
    pair = Pair()
    pair.state.claim("a")
    pair.state.reserve("a", [1])
    view = pair.cache.inputs("kv", ["a"], [1], None)
    kind = type(pair.own.inputs("kv", ["a"], [1], None))
    assert isinstance(view, kind)
    assert isinstance(view.next_row(), kind)
    assert isinstance(view.next_row().next_row(), kind)
    assert pair.cache.inputs("another", ["a"], [1], None) is None
    (found,) = pair.tell(view)
    assert type(found) is kind
    assert found.memory[0].data_ptr() == pair.copy.memory.data_ptr()


def test_a_copy_that_does_otherwise_is_said() -> None:
    pair = Pair()
    with pytest.raises(StateError):
        pair.cache.commit("a", 1)
    pair.copy.claim("a")
    pair.copy.reserve("a", 1)
    with pytest.raises(StateError, match="commit of cache 'conv' raised StateError on rank 0 and"):
        pair.tell()


def test_an_interrupt_may_have_come_before_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request_id: str) -> None:
        raise KeyboardInterrupt

    pair = Pair()
    with monkeypatch.context() as patch:
        patch.setattr(pair.own, "claim", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pair.state.claim("a")
    pair.state.reset()
    assert pair.agree()
    pair.state.claim("a")
    assert pair.agree()


def test_a_cache_without_clear_has_none() -> None:
    class Bare:
        def claim(self, request_id: str) -> None:
            raise Planted

    mirrored: Any = MirroredCache(Bare(), "bare", log := [], {})  # type: ignore[arg-type]
    assert not hasattr(mirrored, "clear")
    with pytest.raises(Planted):
        mirrored.claim("a")
    assert log == [("change", ("bare", "claim", ("a",), "Planted"))]
