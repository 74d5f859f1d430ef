"""Random histories of passes, as verify steps make them, each pass checked against plain feeding.

Knows: what a request's logits and columns must be. Does not know: how the cache keeps them.
"""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import strategies as st

from lfm2.driver import Driver, whole
from pilotfish.errors import OutOfPagesError
from pilotfish_lfm2.model import LFM2Model

VOCAB = 96
WRONG = 95
"""A token that no text has: drafted and rejected."""
PAGE = 4
MAX_ROWS = 24
"""Longest text, and so the largest pass: more rows than a slot takes in place."""


def text(branch: int, length: int) -> list[int]:
    """One of a few texts that share their first six tokens."""
    return [(7 * i + 3 + (branch * 11 if i >= 6 else 0)) % (VOCAB - 1) for i in range(length)]


class Plain:
    """What plain feeding gives, by the tokens: each text is fed once.

    A planted bug wants one of its own, which is fed while it is there.
    """

    def __init__(self, model: LFM2Model) -> None:
        self.model = model
        self.logits = cache(lambda tokens: whole(model, tokens))
        """[T, V] of (token, ...)."""
        self.columns = cache(self._columns)
        """As `Driver.columns`, of (token, ...)."""

    def _columns(self, tokens: tuple[int, ...]) -> list[torch.Tensor]:
        fresh = Driver(self.model, max_slots=1)
        fresh.add("fresh", tokens)
        if tokens:
            fresh.run({"fresh": len(tokens)})
        return fresh.columns("fresh")


class Histories:
    """Plays passes over a small pool; every row and state must have plain feeding's bits."""

    def __init__(self, plain: Plain, data: st.DataObject, *, prefix_caching: bool) -> None:
        self.plain = plain
        self.data = data
        self.driver = Driver(
            plain.model,
            page_size_tokens=PAGE,
            num_pages=9 if prefix_caching else 40,
            max_slots=3,
            prefix_caching=prefix_caching,
        )
        self.branches: dict[str, int] = {}
        self.num_named = 0

    def play(self, num_passes: int) -> None:
        """Claims, passes and releases."""
        for _ in range(num_passes):
            if len(self.branches) < 3:
                self._claim(self.data.draw(st.integers(0, 2), label="text"))
            self._pass()
            self.driver.states.check()
            if self.branches and self.data.draw(st.integers(0, 3), label="release") == 0:
                self._preempt(self.data.draw(st.sampled_from(sorted(self.branches))))

    def _claim(self, branch: int) -> None:
        name = f"r{self.num_named}"
        self.num_named += 1
        self.driver.add(name, text(branch, MAX_ROWS))
        self.branches[name] = branch
        self._check_state(name)

    def _preempt(self, name: str) -> None:
        """Gives a request up; it comes back in a later claim, or not."""
        self.driver.drop(name)
        del self.branches[name]

    def _pass(self) -> None:
        """One pass over some requests: right rows, then wrong ones; some right ones are kept."""
        names = self.data.draw(
            st.lists(st.sampled_from(sorted(self.branches)), min_size=1, unique=True), label="names"
        )
        rows: dict[str, int] = {}
        keep: dict[str, int] = {}
        for name in names:
            context = self.driver.contexts[name]
            left = MAX_ROWS - context.num_computed
            count = self.data.draw(st.sampled_from((1, 1, 2, 3, 5, 9, 20)), label="rows")
            count = min(count, left)
            right = self.data.draw(st.integers(0, count), label="right")
            if count:
                rows[name], keep[name] = count, right
                stop = context.num_computed + right
                context.tokens[stop:] = [WRONG] * (MAX_ROWS - stop)
        if not rows:
            return
        try:
            got = self.driver.run(rows, keep)
        except OutOfPagesError:
            for name in sorted(self.branches):
                self._preempt(name)
            return
        for name, count in rows.items():
            self._check_rows(name, got[name], count, keep[name])
            self.driver.contexts[name].tokens[:] = text(self.branches[name], MAX_ROWS)

    def _check_rows(self, name: str, got: torch.Tensor, count: int, kept: int) -> None:
        context = self.driver.contexts[name]
        start = context.num_computed - kept
        fed = context.tokens[: start + count]
        assert torch.equal(got, self.plain.logits(tuple(fed))[start:]), (name, fed)
        self._check_state(name)

    def _check_state(self, name: str) -> None:
        """The columns are those of a request that was fed the committed tokens and no other."""
        done = text(self.branches[name], self.driver.contexts[name].num_computed)
        columns = zip(self.driver.columns(name), self.plain.columns(tuple(done)), strict=True)
        assert all(torch.equal(got, wanted) for got, wanted in columns), name


def serve_in_turn(model: LFM2Model) -> None:
    """Texts one after the other over so few pages that each takes those of the one before.

    A text that comes twice starts from the pages it left, which held another text before.
    """
    driver = Driver(model, page_size_tokens=PAGE, num_pages=7, max_slots=1, prefix_caching=True)
    hits = 0
    for branch in (0, 1, 1, 2, 2, 0, 0):
        tokens = text(branch, MAX_ROWS)
        restored = driver.add("a", tokens)
        hits += restored == MAX_ROWS - PAGE
        got = driver.run({"a": MAX_ROWS - restored})["a"]
        assert torch.equal(got, whole(model, tokens)[restored:]), branch
        driver.drop("a")
        driver.states.check()
    assert hits == 3
