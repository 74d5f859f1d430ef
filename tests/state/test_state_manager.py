"""StateManager: the lifecycle in small, written-out histories."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import torch

from pilotfish.errors import OutOfPagesError, StateError
from pilotfish.state import KVCacheParams, PagedStateSpec, StateManager
from pilotfish.state.tables import PageTables, write_slots
from soak.strikes import AtCall, PlantedInterrupt
from support.state_toys import ToyRecurrentCache

KV = KVCacheParams(num_layers=2, num_kv_heads=1, head_dim=2)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make(num_pages: int = 8, page_size_tokens: int = 4, **options: object) -> StateManager:
    return StateManager(
        [KV.spec],
        num_pages=num_pages,
        page_size_tokens=page_size_tokens,
        poison=True,
        **options,  # type: ignore[arg-type]
    )


def feed(
    manager: StateManager, request_id: str, keys: list[int], accepted: int | None = None
) -> None:
    manager.reserve(request_id, keys)
    inputs = manager.kv_inputs([request_id], [len(keys)])
    for block in inputs.blocks:
        rows = torch.tensor(keys, dtype=torch.float32, device=block.device)
        block.flatten(0, 1)[inputs.write_slots] = rows.view(-1, 1, 1, 1).expand(-1, 2, 1, 2)
    manager.commit(request_id, len(keys) if accepted is None else accepted)
    manager.check()


def read(manager: StateManager, request_id: str) -> list[float]:
    inputs = manager.kv_inputs([request_id], [0])
    rows = inputs.blocks[-1][inputs.lookup_table[0].long()].flatten(0, 1)
    return rows[: inputs.lengths[0], 0, 0, 0].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_kv_inputs_describe_a_mixed_batch(device: str) -> None:
    manager = make(device=device)
    manager.claim("a")
    manager.claim("b")
    feed(manager, "a", [1, 2, 3, 4, 5])
    manager.reserve("a", [6])
    manager.reserve("b", [7] * 6)
    inputs = manager.kv_inputs(["b", "a"], [6, 1])
    assert manager.pages_of("a") == (0, 1)
    assert manager.pages_of("b") == (2, 3)
    assert inputs.lookup_table.tolist() == [[2, 3], [0, 1]]
    assert inputs.lookup_table.dtype == inputs.cache_lengths.dtype == torch.int32
    assert inputs.write_slots.dtype == torch.int64
    assert inputs.write_slots.tolist() == [8, 9, 10, 11, 12, 13, 5]
    assert inputs.cache_lengths.tolist() == [0, 5]
    assert (inputs.lengths, inputs.row_counts) == ((0, 5), (6, 1))
    assert inputs.page_size_tokens == 4
    assert {t.device.type for t in inputs.buffers} == {device}
    assert all(t.data_ptr() % 16 == 0 for t in (inputs.lookup_table, inputs.cache_lengths))


@pytest.mark.parametrize("num_requests", [1, 2, 3, 5, 9, 70])
def test_kv_inputs_of_any_batch_size(num_requests: int) -> None:
    manager = make(num_pages=200, page_size_tokens=2)
    names = [f"r{i}" for i in range(num_requests)]
    for i, name in enumerate(names):
        manager.claim(name)
        feed(manager, name, [i] * (1 + i % 4))
        manager.reserve(name, [i])
    inputs = manager.kv_inputs(names, [1] * num_requests)
    for i, name in enumerate(names):
        pages, length = manager.pages_of(name), 1 + i % 4
        width = inputs.lookup_table.shape[1]
        assert inputs.lookup_table[i].tolist() == [*pages, *[0] * (width - len(pages))]
        assert inputs.cache_lengths[i] == inputs.lengths[i] == length
        assert inputs.write_slots[i] == pages[length // 2] * 2 + length % 2


def test_skip_continues_after_rows_of_the_same_step() -> None:
    manager = make()
    manager.claim("a")
    feed(manager, "a", [1, 2, 3])
    manager.reserve("a", [4, 5], scratch=3)
    inputs = manager.kv_inputs(["a"], [3], skip=[2])
    assert inputs.lengths == (5,)
    assert inputs.write_slots.tolist() == [5, 6, 7]
    with pytest.raises(StateError, match=r"rows 5 to 9 of request 'a' are not reserved"):
        manager.kv_inputs(["a"], [4], skip=[2])
    with pytest.raises(StateError, match="cannot commit 3 rows of request 'a': 2 are reserved"):
        manager.commit("a", 3)


def test_a_second_request_shares_full_pages_and_computes_the_rest() -> None:
    manager = make()
    keys = list(range(10, 20))
    assert manager.claim("a", keys) == 0
    feed(manager, "a", keys)
    assert manager.claim("b", keys) == 8
    assert manager.pages_of("b") == manager.pages_of("a")[:2]
    feed(manager, "b", [77])
    assert read(manager, "b") == [*map(float, keys[:8]), 77.0]
    assert read(manager, "a") == list(map(float, keys))
    assert manager.claim("c", keys[:8]) == 4, "the last token is computed anew"
    assert manager.claim("d", keys, salt=b"other") == 0
    assert manager.claim("e") == 0


def test_a_released_prefix_is_found_again_until_its_pages_are_needed() -> None:
    manager = make(num_pages=4)
    manager.claim("a")
    feed(manager, "a", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    manager.release("a")
    assert (manager.pool.num_free, manager.pool.num_cached) == (2, 2)
    assert manager.claim("b", [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8
    manager.release("b")
    manager.claim("c")
    feed(manager, "c", [0] * 12)
    assert manager.pool.num_cached == 1
    assert manager.claim("d", [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 4, "the end goes before the beginning"


def test_rejected_rows_leave_no_trace() -> None:
    manager = make()
    manager.claim("a")
    feed(manager, "a", [1, 2, 3, 50, 51, 52], accepted=3)
    assert manager.num_committed("a") == 3
    assert manager.pages_of("a") == (0,)
    assert manager.paged_cache("kv").blocks[0][0, 3:].isnan().all()
    feed(manager, "a", [4, 5])
    assert read(manager, "a") == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert manager.claim("b", [1, 2, 3, 50, 51]) == 0
    assert manager.claim("c", [1, 2, 3, 4, 50]) == 4


def test_commit_of_nothing_and_replaced_reservations() -> None:
    manager = make()
    manager.claim("a")
    manager.reserve("a", [1] * 9)
    assert len(manager.pages_of("a")) == 3
    manager.reserve("a", [2] * 5)
    assert len(manager.pages_of("a")) == 2
    manager.commit("a", 0)
    assert manager.pages_of("a") == ()
    assert manager.pool.num_free == 8
    with pytest.raises(StateError, match="0 are reserved"):
        manager.commit("a", 1)
    manager.check()


def test_out_of_pages_changes_nothing_and_names_the_request() -> None:
    manager = make(num_pages=3)
    manager.claim("a")
    feed(manager, "a", [1, 2, 3])
    manager.reserve("a", [4, 5])
    with pytest.raises(OutOfPagesError, match="request 'a': wanted 2 pages; 1 are free"):
        manager.reserve("a", [4] * 10)
    assert manager.num_reserved("a") == 2
    manager.commit("a", 2)
    assert manager.num_committed("a") == 5
    manager.reserve("a", [6] * 7)
    manager.check()


@pytest.mark.parametrize("length", range(1, 10))
def test_every_length_around_the_page_size_fits_exactly(length: int) -> None:
    """Length equal to the capacity is served; one more is not."""
    manager = make(num_pages=-(-length // 4))
    manager.claim("a")
    for i in range(length):
        feed(manager, "a", [i])
    assert read(manager, "a") == list(map(float, range(length)))
    room = -length % 4
    with pytest.raises(OutOfPagesError):
        manager.reserve("a", [0] * (room + 1))
    manager.reserve("a", [0] * room)


def test_simultaneous_equal_prompts_keep_their_own_pages() -> None:
    manager = make()
    for name in "ab":
        manager.claim(name, [1, 2, 3, 4, 5])
    for name in "ab":
        feed(manager, name, [1, 2, 3, 4, 5])
    assert not set(manager.pages_of("a")) & set(manager.pages_of("b"))
    manager.release("a")
    manager.release("b")
    assert (manager.pool.num_cached, manager.pool.num_free) == (1, 7)
    manager.check()


def test_without_prefix_caching_nothing_is_kept() -> None:
    manager = make(prefix_caching=False)
    manager.claim("a")
    feed(manager, "a", [1] * 8)
    assert manager.claim("b", [1] * 9) == 0
    manager.release("a")
    assert (manager.pool.num_cached, manager.pool.num_free) == (0, 8)


def test_lookahead_shares_a_page_only_when_the_next_key_agrees() -> None:
    manager = make(lookahead=1)
    manager.claim("a")
    feed(manager, "a", [1, 2, 3, 4])
    assert manager.claim("early", [1, 2, 3, 4, 5]) == 0, "the next key is not known yet"
    feed(manager, "a", [5])
    assert manager.claim("same", [1, 2, 3, 4, 5]) == 4
    assert manager.claim("other", [1, 2, 3, 4, 6]) == 0


def test_forget_cached_empties_the_cache_and_spares_live_requests() -> None:
    manager = make()
    manager.claim("a")
    manager.claim("b")
    feed(manager, "a", [1] * 5)
    feed(manager, "b", [2] * 5)
    manager.release("b")
    manager.forget_cached()
    assert manager.claim("c", [1] * 5) == manager.claim("d", [2] * 5) == 0
    assert read(manager, "a") == [1.0] * 5
    manager.check()


def test_leaves_share_pages_and_keep_their_geometry() -> None:
    draft = PagedStateSpec(name="draft", num_layers=1, row_shape=(5,), dtype="bfloat16")
    manager = StateManager([KV.spec, draft], num_pages=4, page_size_tokens=2)
    manager.claim("a")
    manager.reserve("a", [1, 2, 3])
    target, draft = manager.kv_inputs(["a"], [3]), manager.kv_inputs(["a"], [3], "draft")
    assert target.write_slots.tolist() == draft.write_slots.tolist()
    assert [tuple(b.shape) for b in target.blocks] == [(4, 2, 2, 1, 2)] * 2
    assert [(tuple(b.shape), b.dtype) for b in draft.blocks] == [((4, 2, 5), torch.bfloat16)]
    assert manager.paged_cache("draft").num_bytes == 4 * 2 * 5 * 2
    with pytest.raises(StateError, match=r"no paged cache is named 'other'; .* 'kv', 'draft'"):
        manager.kv_inputs(["a"], [1], "other")
    with pytest.raises(StateError, match="two paged caches are named 'kv'"):
        StateManager([KV.spec, KV.spec], num_pages=1, page_size_tokens=1)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda m: m.claim("a"),
        lambda m: m.release("nobody"),
        lambda m: m.reserve("nobody", [1]),
        lambda m: m.commit("nobody", 0),
        lambda m: m.commit("a", -1),
        lambda m: m.reserve("a", [1], scratch=-1),
        lambda m: m.num_committed("nobody"),
        lambda m: m.kv_inputs(["nobody"], [0]),
        lambda m: m.kv_inputs(["a"], [-1]),
        lambda m: m.kv_inputs(["a"], [1], skip=[-1]),
    ],
)
def test_misuse_is_an_error_and_changes_nothing(misuse: Callable[[StateManager], object]) -> None:
    manager = make()
    manager.claim("a")
    feed(manager, "a", [1, 2, 3])
    manager.reserve("a", [4])
    with pytest.raises(StateError, match=r"'a'|'nobody'"):
        misuse(manager)
    assert (manager.num_committed("a"), manager.num_reserved("a")) == (3, 1)
    manager.check()


def test_a_guard_stops_a_write_to_a_published_page() -> None:
    manager = make()
    manager.claim("a")
    feed(manager, "a", [1, 2, 3])
    manager.pool.publish(0)
    with pytest.raises(StateError, match="shared or published"):
        manager.reserve("a", [4])


def test_check_finds_cooked_books() -> None:
    manager = make()
    manager.claim("a")
    feed(manager, "a", [1] * 5)
    manager.pool.share(0)
    with pytest.raises(StateError, match="page 0 counts 2 references, has 1"):
        manager.check()


class CacheWithoutClear(ToyRecurrentCache):
    """As a plugin's may be: `clear` is optional."""

    def __getattribute__(self, name: str) -> object:
        if name == "clear":
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_a_reset_takes_back_what_an_interrupt_left_in_a_cache_without_clear() -> None:
    at, is_done = 0, False
    while not is_done:
        at += 1
        cache = CacheWithoutClear()
        manager = make(slot_caches=[cache])
        strike = AtCall(at, "pilotfish.state", PlantedInterrupt)
        with suppress(PlantedInterrupt):
            strike.during(partial(manager.claim, "a"))
            strike.during(partial(manager.release, "a"))
        is_done = not strike.has_struck
        manager.reset()
        assert not cache.states, f"struck at call {at}"
        assert manager.claim("a") == 0
        manager.check()
    assert at > 20


def test_page_tables_grow_and_forget() -> None:
    tables = PageTables()
    rows = [tables.claim_row() for _ in range(20)]
    assert len(set(rows)) == 20
    tables.write(rows[19], 0, range(1, 41))
    assert tables.gather([rows[19]], 40).tolist() == [list(range(1, 41))]
    tables.cut(rows[19], 2, 40)
    assert tables.gather([rows[19], rows[0]], 4).tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
    tables.release_row(rows[19])
    assert tables.claim_row() == rows[19]
    assert tables.gather([rows[19]], 2).tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_write_slots_are_page_times_size_plus_offset(size: int) -> None:
    pages = [5, 0, 7, 3]
    for start in range(2 * size + 1):
        for count in range(2 * size):
            expected = [pages[r // size] * size + r % size for r in range(start, start + count)]
            if start + count <= 4 * size:
                assert write_slots(pages, start, count, size) == expected
