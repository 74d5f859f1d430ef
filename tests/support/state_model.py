"""A naive model of the state of requests, and a machine that compares the real one to it.

Every row's content is a hash of all keys up to it (for the draft: and `lookahead` keys past
it), so a row of a wrong page, a stale row or a row of a rejected token can not look right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from pilotfish.errors import OutOfPagesError, OutOfSlotsError
from pilotfish.state import PagedStateSpec, StateManager
from strategies import (
    WRONG_KEY,
    BranchingText,
    PoolGeometry,
    StepPlan,
    branching_texts,
    pool_geometries,
    salts,
    step_plans,
)
from support.state_conv import ConvShape, ConvSide, FedRows, conv_shapes
from support.state_toys import NaiveRequest, PlantedError, ToyRecurrentCache, row_value

TARGET = PagedStateSpec(name="kv", num_layers=2, row_shape=(2, 1, 2), dtype="float32")
DRAFT = PagedStateSpec(name="draft", num_layers=1, row_shape=(3,), dtype="float32")
MAX_PAGES_PER_REQUEST = 5


class StateMachine(RuleBasedStateMachine):
    """Random lifecycles over a tiny pool; every promise is checked after each rule."""

    live = Bundle("live")

    @initialize(
        geometry=pool_geometries(),
        num_slot_caches=st.sampled_from((2, 0, 1, 2)),
        conv=conv_shapes(),
    )
    def make(self, geometry: PoolGeometry, num_slot_caches: int, conv: ConvShape | None) -> None:
        self.size = geometry.page_size_tokens
        self.geometry = geometry
        self.caches = [ToyRecurrentCache() for _ in range(num_slot_caches)]
        self.conv: ConvSide | None = None
        if conv is not None:
            self.conv = ConvSide(conv, geometry.num_pages if geometry.prefix_caching else 0)
        real = [] if self.conv is None else [self.conv.cache]
        self.manager = StateManager(
            [TARGET, DRAFT],
            num_pages=geometry.num_pages,
            page_size_tokens=self.size,
            prefix_caching=geometry.prefix_caching,
            lookahead=geometry.lookahead,
            slot_caches=[*self.caches[:1], *real, *self.caches[1:]],
            poison=True,
        )
        self.max_rows = min(MAX_PAGES_PER_REQUEST, geometry.num_pages) * self.size
        self.requests: dict[str, NaiveRequest] = {}
        self.num_named = 0
        self.frozen: dict[object, bytes] = {}

    # Rules

    @rule(target=live, text=branching_texts(), salt=salts(), steps=step_plans())
    def claim(self, text: BranchingText, salt: bytes, steps: StepPlan) -> MultipleResults[str]:
        """A new request; text beyond its prompt is what plain decoding would have given."""
        name = self._claim_new(text, salt, steps)
        return multiple() if name is None else multiple(name)

    @rule(text=branching_texts(), salt=salts(), steps=step_plans())
    def serve_at_once(self, text: BranchingText, salt: bytes, steps: StepPlan) -> None:
        """A request that comes, computes its prompt in one pass and goes: it fills the cache."""
        request_id = self._claim_new(text, salt, steps)
        if request_id is None:
            return
        if self._reserve_and_write(request_id, steps):
            self._commit(request_id)
        self.release(request_id)

    @rule(request_id=live, steps=step_plans())
    def step(self, request_id: str, steps: StepPlan) -> None:
        """Reserve, write, accept some: prefill chunk, decode and verify are all of this kind."""
        if self._reserve_and_write(request_id, steps):
            self._commit(request_id)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def step_together(self, data: st.DataObject) -> None:
        """Several requests in one pass; each keeps what the verify of its rows would keep."""
        names = data.draw(st.lists(st.sampled_from(sorted(self.requests)), unique=True, min_size=1))
        offered: dict[str, list[int]] = {}
        for name in names:
            steps = data.draw(step_plans())
            keys = self._reserve(name, steps)
            if keys is not None:
                offered[name] = keys
                self._write(name, keys, self.requests[name].pending, steps.num_scratch)
        self._run_conv(offered)
        for name in offered:
            self._commit(name)

    @rule(request_id=live, steps=step_plans())
    def step_that_fails(self, request_id: str, steps: StepPlan) -> None:
        """The pass raised after it wrote its rows: nothing is committed."""
        self._reserve_and_write(request_id, steps)

    @rule(request_id=live)
    def commit_nothing(self, request_id: str) -> None:
        self.requests[request_id].pending = 0
        self._commit(request_id)

    @rule(request_id=consumes(live))
    def release(self, request_id: str) -> None:
        self.manager.release(request_id)
        del self.requests[request_id]

    @rule(request_id=live, num_sampled=st.integers(0, 1))
    def preempt_and_reclaim(self, request_id: str, num_sampled: int) -> None:
        """Its rows so far become its prompt, with or without a token sampled and not yet fed."""
        request = self.requests.pop(request_id)
        self.manager.release(request_id)
        fresh = NaiveRequest(salt=request.salt, text=request.text)
        self._claim(request_id, fresh, max(1, request.num_committed + num_sampled))

    @rule()
    def forget_cached(self) -> None:
        self.manager.forget_cached()
        assert self.manager.pool.num_cached == 0

    @precondition(lambda self: self.caches)
    @rule(
        request_id=live,
        which=st.sampled_from((1, 0)),
        method=st.sampled_from(("reserve", "commit", "keep")),
        steps=step_plans(),
    )
    def fault_in_step(self, request_id: str, which: int, method: str, steps: StepPlan) -> None:
        """A slot cache raises in the middle of a call; all lengths agree afterwards."""
        request = self.requests[request_id]
        before = self._stats()
        with self._fault(which, method):
            try:
                if self._reserve_and_write(request_id, steps):
                    self._commit(request_id)
            except PlantedError:
                if method == "reserve":
                    assert self._pages_and_lengths(before) == self._pages_and_lengths(self._stats())
                else:
                    request.forget()
        assert self.manager.num_committed(request_id) == request.num_committed

    @precondition(lambda self: self.caches)
    @rule(
        text=branching_texts(),
        which=st.sampled_from((1, 0)),
        method=st.sampled_from(("claim", "restore")),
    )
    def fault_in_claim(self, text: BranchingText, which: int, method: str) -> None:
        if self.conv is not None and self.conv.is_full(len(self.requests)):
            return
        with self._fault(which, method):
            try:
                self.manager.claim("doomed", text.keys(self.max_rows))
            except PlantedError:
                assert "doomed" not in self.manager.request_ids
            else:
                self.manager.release("doomed")

    @precondition(lambda self: self.caches)
    @rule(request_id=consumes(live), which=st.sampled_from((1, 0)))
    def fault_in_release(self, request_id: str, which: int) -> None:
        """The cache's error is raised, and everything is given back all the same."""
        with self._fault(which, "release"):
            try:
                self.manager.release(request_id)
            except PlantedError:
                del self.requests[request_id]
        assert request_id not in self.requests, "the slot cache's error was swallowed"

    # What every rule shares

    @contextmanager
    def _fault(self, which: int, method: str) -> Iterator[None]:
        cache = self.caches[which % len(self.caches)]
        cache.fail_in = method
        yield
        cache.fail_in = None

    def _claim_new(self, text: BranchingText, salt: bytes, steps: StepPlan) -> str | None:
        """None when every slot is taken, in which case nothing changed."""
        request_id = f"r{self.num_named}"
        self.num_named += 1
        if self.conv is not None and self.conv.is_full(len(self.requests)):
            before = self._stats()
            try:
                self.manager.claim(request_id, text.keys(1 + steps.num_rows), salt)
            except OutOfSlotsError:
                assert self._stats() == before
                assert request_id not in self.manager.request_ids
                return None
            raise AssertionError("a slot was given out twice")
        self._claim(request_id, NaiveRequest(salt=salt, text=text), 1 + steps.num_rows)
        return request_id

    def _claim(self, request_id: str, request: NaiveRequest, prompt_length: int) -> None:
        prompt = request.text.keys(prompt_length)
        restored = self.manager.claim(request_id, prompt, request.salt)
        assert restored % self.size == 0
        assert restored < prompt_length, "the last token of the prompt must be computed"
        for cache in self.caches:
            assert cache.lengths[request_id] == restored, "the cache was not told of the hit"
        request.num_committed = restored
        self.requests[request_id] = request

    def _reserve_and_write(self, request_id: str, steps: StepPlan) -> bool:
        """False when the pool was too small, in which case nothing changed."""
        offered = self._reserve(request_id, steps)
        if offered is None:
            return False
        self._write(request_id, offered, self.requests[request_id].pending, steps.num_scratch)
        self._run_conv({request_id: offered})
        return True

    def _reserve(self, request_id: str, steps: StepPlan) -> list[int] | None:
        """The keys offered, right ones first; None when the pool was too small."""
        request, manager = self.requests[request_id], self.manager
        done = request.num_committed
        count = max(0, min(steps.num_rows, self.max_rows - done))
        right = max(0, count - steps.num_rejected)
        wrong = [WRONG_KEY + i for i in range(count - right)]
        offered = request.text.keys(done + right)[done:] + wrong
        num_rows = count + steps.num_scratch
        before = self._stats()
        try:
            manager.reserve(request_id, offered, steps.num_scratch)
        except OutOfPagesError:
            assert self._stats() == before
            missing = -(-(done + num_rows) // manager.page_size_tokens) - len(
                manager.pages_of(request_id)
            )
            assert missing > manager.pool.num_free + manager.pool.num_cached
            return None
        request.pending, request.room, request.dirty = right, num_rows, True
        return offered

    def _run_conv(self, offered: dict[str, list[int]]) -> None:
        """One pass of the convolution over the offered rows of some requests."""
        if self.conv is None or not offered:
            return
        counts = [len(keys) for keys in offered.values()]
        rows = []
        for name, keys in offered.items():
            request = self.requests[name]
            history = request.text.keys(request.num_committed) + keys
            rows.append(FedRows(salt=request.salt, history=history, count=len(keys)))
        self.conv.run(self.manager.kv_inputs(list(offered), counts, "kv"), rows)

    def _stats(self) -> tuple[object, ...]:
        return (
            {name: self.manager.pages_of(name) for name in self.requests},
            {name: self.manager.num_committed(name) for name in self.requests},
            self.manager.pool.num_free,
            self.manager.pool.num_cached,
        )

    @staticmethod
    def _pages_and_lengths(stats: tuple[object, ...]) -> tuple[object, ...]:
        """What a failed reserve restores; it may have taken cached pages for free ones."""
        return stats[:2]

    def _write(self, request_id: str, offered: list[int], right: int, scratch: int) -> None:
        """The target writes every offered row; the draft learns first how many were right."""
        request = self.requests[request_id]
        start, count = request.num_committed, len(offered)
        history = request.text.keys(start) + offered
        values = [row_value(request.salt, history[: start + i + 1]) for i in range(count)]
        self._put("kv", request_id, count, 0, values)
        self._put("draft", request_id, right, 0, self._draft_rows(request, start, start + right))
        garbage = [-1.0] * (count - right + scratch)
        self._put("draft", request_id, len(garbage), right, garbage)
        for cache in self.caches:
            cache.write(request_id, values)

    def _draft_rows(self, request: NaiveRequest, start: int, stop: int) -> list[float]:
        """Rows of a draft that looks at `lookahead` tokens past each row."""
        keys = request.text.keys(stop + self.geometry.lookahead)
        ends = range(start + 1 + self.geometry.lookahead, stop + 1 + self.geometry.lookahead)
        return [row_value(request.salt, keys[:end]) for end in ends]

    def _put(
        self, cache_name: str, request_id: str, count: int, skip: int, values: list[float]
    ) -> None:
        inputs = self.manager.kv_inputs([request_id], [count], cache_name, [skip])
        slots, rows = inputs.write_slots.numpy(), np.array(values, np.float32)[:, None]
        assert len(slots) == count
        for block in map(_numbers, inputs.blocks):
            block.reshape(-1, block.shape[2])[slots] = rows

    def _commit(self, request_id: str) -> None:
        request = self.requests[request_id]
        self.manager.commit(request_id, request.pending)
        request.num_committed += request.pending
        request.pending, request.room, request.dirty = 0, 0, False

    # Promises

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.manager.check()
        owned = {page for name in self.requests for page in self.manager.pages_of(name)}
        total = len(owned) + self.manager.pool.num_free + self.manager.pool.num_cached
        assert total == self.geometry.num_pages
        assert set(self.manager.request_ids) == set(self.requests)
        if not self.geometry.prefix_caching:
            assert self.manager.pool.num_cached == 0

    @invariant()
    def committed_rows_are_right(self) -> None:
        wanted: dict[str, list[list[float]]] = {"kv": [], "draft": []}
        for name, request in getattr(self, "requests", {}).items():
            done, salt = request.num_committed, request.salt
            assert self.manager.num_committed(name) == done
            keys = request.text.keys(done)
            wanted["kv"].append([row_value(salt, keys[: i + 1]) for i in range(done)])
            wanted["draft"].append(self._draft_rows(request, 0, done))
            for cache in self.caches:
                assert cache.states[name] == (row_value(salt, keys) if done else None)
            if self.conv is not None:
                self.conv.check(name, salt, keys)
        for cache_name, expected in wanted.items():
            if expected:
                self._same_rows(cache_name, list(self.requests), expected)

    @invariant()
    def attached_caches_keep_step(self) -> None:
        conv = getattr(self, "conv", None)
        if conv is not None:
            assert conv.kept_pages(self.geometry.num_pages) <= self.manager.index.pages()
            assert set(conv.cache.slots.request_ids) == set(self.requests)
        for cache in getattr(self, "caches", ()):
            assert set(cache.states) == set(self.requests)
            assert set(cache.snapshots) <= self.manager.index.pages(), "outlived its page"
            for name, request in self.requests.items():
                assert cache.lengths[name] == request.num_committed
                assert cache.room[name] == request.room

    def _same_rows(self, cache_name: str, names: list[str], expected: list[list[float]]) -> None:
        """expected: what the committed rows of each request hold."""
        inputs = self.manager.kv_inputs(names, [0] * len(names), cache_name)
        assert inputs.lengths == tuple(map(len, expected))
        assert inputs.cache_lengths.tolist() == list(map(len, expected))
        table = inputs.lookup_table.numpy()
        for block in map(_numbers, inputs.blocks):
            for name, pages, rows in zip(names, table, expected, strict=True):
                found = block[pages].reshape(-1, block.shape[2])[: len(rows)]
                wanted = np.array(rows, np.float32)[:, None].repeat(block.shape[2], 1)
                assert np.array_equal(found, wanted), (name, cache_name)

    @invariant()
    def nobodys_rows_are_poisoned(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager = self.manager
        for cache_name in ("kv", "draft"):
            for block in manager.paged_cache(cache_name).blocks:
                poisoned = np.isnan(_numbers(block)).all(2)
                assert poisoned[manager.pool.free_pages()].all()
                for name, request in self.requests.items():
                    offset = request.num_committed % self.size
                    if offset and not request.dirty:
                        page = manager.pages_of(name)[request.num_committed // self.size]
                        assert poisoned[page, offset:].all(), "scratch survived a commit"

    @invariant()
    def shared_pages_are_never_written(self) -> None:
        if not hasattr(self, "manager"):
            return
        pool, index = self.manager.pool, self.manager.index
        pages = [
            page
            for page in range(pool.num_pages)
            if pool.is_published(page) or pool.refcount(page) > 1
        ]
        contents = [
            _numbers(block)[pages]
            for cache_name in ("kv", "draft")
            for block in self.manager.paged_cache(cache_name).blocks
        ]
        assert not any(np.isnan(content).any() for content in contents)
        frozen: dict[object, bytes] = {}
        for page, *parts in zip(pages, *contents, strict=True):
            content = b"".join(part.tobytes() for part in parts)
            key = page, index._name_of.get(page)
            assert self.frozen.get(key, content) == content, f"page {page} was written"
            frozen[key] = content
        self.frozen = frozen


def _numbers(block: torch.Tensor) -> npt.NDArray[np.float32]:
    """[pages, rows of a page, numbers of a row], the block's own memory."""
    return block.view(*block.shape[:2], -1).numpy()
