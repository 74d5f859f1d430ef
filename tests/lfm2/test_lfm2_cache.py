"""ConvStateCache: the surface, the lifecycle against a naive list of columns, and its errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import OutOfSlotsError, StateError
from pilotfish_lfm2.cache import ConvStateCache

LAYERS, SIZE = 2, 3


def make(width: int = 3, max_slots: int = 3, num_pages: int = 0, rows: int = 4) -> ConvStateCache:
    return ConvStateCache(
        LAYERS,
        SIZE,
        width,
        torch.float32,
        max_slots,
        "cpu",
        rows_in_place=rows,
        num_pages=num_pages,
        poison=True,
    )


def write(cache: ConvStateCache, names: list[str], counts: list[int], first: float) -> None:
    """What the kernel does: row i of the pass writes first + i, in every layer."""
    columns = cache.inputs("kv", names, counts)
    assert columns is not None
    in_place = range(len(columns.own)) if columns.rows is None else columns.rows.tolist()
    for layer in range(LAYERS):
        for row, own in zip(in_place, columns.own.tolist(), strict=True):
            columns.memory[layer][own] = first + row
        for run in columns.runs:
            for i in range(run.num_rows):
                own = run.start + cache.width - 1 + i
                run.memory[layer][own] = first + run.first_row + i


def window(values: list[float], width: int) -> list[float]:
    """The last `width` of the columns so far, zeros before the first."""
    return ([0.0] * width + values)[len(values) :]


@settings(max_examples=200)
@given(data=st.data())
def test_any_history_leaves_the_last_committed_columns(data: st.DataObject) -> None:
    """Random reservations, passes and commits of a few requests, in place and in runs."""
    width = data.draw(st.integers(1, 4))
    cache = make(width=width, max_slots=3, rows=data.draw(st.integers(1, 4)))
    kept: dict[str, list[float]] = {}
    number = 1.0
    for _ in range(data.draw(st.integers(1, 10))):
        name = data.draw(st.sampled_from("abc"))
        if name not in kept:
            cache.claim(name)
            kept[name] = []
        elif data.draw(st.integers(0, 5)) == 0:
            cache.release(name)
            del kept[name]
            continue
        names = data.draw(st.permutations(sorted(kept)))
        counts = [data.draw(st.integers(0, 6)) for _ in names]
        for one, count in zip(names, counts, strict=True):
            cache.reserve(one, count)
        write(cache, list(names), counts, number)
        for one, count in zip(names, counts, strict=True):
            accepted = data.draw(st.integers(0, count))
            cache.commit(one, accepted)
            kept[one] += [number + i for i in range(accepted)]
            number += count
        for one, values in kept.items():
            assert cache.num_committed(one) == len(values)
            for layer in cache.get_states([one]):
                assert layer.shape == (1, SIZE, width)
                assert layer[0, 0].tolist() == window(values, width)
                assert torch.equal(layer[0, 0], layer[0, -1])


def test_states_are_batched_in_the_order_asked() -> None:
    cache = make()
    for index, name in enumerate(("a", "b", "c")):
        cache.claim(name)
        cache.reserve(name, index + 1)
        write(cache, [name], [index + 1], 10.0 * index)
        cache.commit(name, index + 1)
    states = cache.get_states(["c", "a"])
    assert len(states) == LAYERS
    assert states[0][:, 0].tolist() == [[20, 21, 22], [0, 0, 0]]
    assert states[1].shape == (2, SIZE, 3)
    assert [s.shape for s in cache.get_states([])] == [(0, SIZE, 3)] * LAYERS


def test_update_states_stores_what_get_states_gives() -> None:
    cache = make()
    for name in ("a", "b", "c"):
        cache.claim(name)
    new = [torch.randn(2, SIZE, 3) for _ in range(LAYERS)]
    cache.update_states(["c", "a"], new)
    for got, wanted in zip(cache.get_states(["c", "a"]), new, strict=True):
        assert torch.equal(got, wanted)
    assert not cache.get_states(["b"])[0].any()
    # The state is where the next row finds it.
    columns = cache.inputs("kv", ["a"], [0])
    assert columns is not None
    cache.reserve("a", 1)
    columns = cache.inputs("kv", ["a"], [1])
    assert columns is not None
    assert torch.equal(columns.memory[0][columns.columns[0, :-1]], new[0][1, :, 1:].T)


def test_a_state_that_was_given_out_does_not_change() -> None:
    cache = make()
    cache.claim("a")
    before = cache.get_states(["a"])
    cache.reserve("a", 2)
    write(cache, ["a"], [2], 5.0)
    cache.commit("a", 2)
    assert not any(layer.any() for layer in before)


def test_a_commit_copies_nothing_in_place() -> None:
    """A decoded row moves an index; the memory is as the pass left it."""
    cache = ConvStateCache(LAYERS, SIZE, 3, torch.float32, 2, "cpu")
    cache.claim("a")
    for step in range(40):  # twice around the ring
        cache.reserve("a", 1)
        write(cache, ["a"], [1], float(step))
        version = cache.memory._version
        cache.commit("a", 1)
        assert cache.memory._version == version
        values = [0.0, 0.0, *map(float, range(step + 1))]
        assert cache.get_states(["a"])[0][0, 0].tolist() == values[-3:]


def test_a_reservation_that_was_not_committed_is_replaced() -> None:
    cache = make()
    cache.claim("a")
    for count in (3, 9, 2):
        cache.reserve("a", count)
        write(cache, ["a"], [count], 50.0)
    cache.commit("a", 1)
    assert cache.get_states(["a"])[0][0, 0].tolist() == [0, 0, 50]
    cache.reserve("a", 9)
    cache.reserve("a", 0)
    cache.commit("a", 0)
    assert cache.get_states(["a"])[0][0, 0].tolist() == [0, 0, 50]


@pytest.mark.parametrize("count", [3, 7])
def test_columns_at_a_boundary_are_kept_restored_and_forgotten(count: int) -> None:
    cache = make(num_pages=4)
    cache.claim("a")
    cache.reserve("a", count)
    write(cache, ["a"], [count], 1.0)
    cache.keep("a", 2, 2)
    cache.commit("a", count)
    cache.keep("a", 1, count)
    assert [cache.restorable(page) for page in range(4)] == [False, True, True, False]
    cache.claim("b")
    cache.restore("b", 2, 2)
    assert cache.num_committed("b") == 2
    assert cache.get_states(["b"])[0][0, 0].tolist() == [0, 1, 2]
    cache.claim("c")
    cache.restore("c", 1, count)
    assert cache.get_states(["c"])[1][0, 1].tolist() == [0, count - 1, count]
    cache.forget(2)
    assert not cache.restorable(2)
    with pytest.raises(StateError, match="nothing is kept at the end of page 2"):
        cache.restore("b", 2, 2)


def test_a_boundary_too_far_back_is_declined() -> None:
    """One row back is still in the window, two are not."""
    cache = make(num_pages=3)
    cache.claim("a")
    cache.reserve("a", 4)
    write(cache, ["a"], [4], 1.0)
    cache.commit("a", 4)
    for page, boundary in enumerate((2, 3, 4)):
        cache.keep("a", page, boundary)
    assert [cache.restorable(page) for page in range(3)] == [False, True, True]
    cache.claim("b")
    cache.restore("b", 1, 3)
    assert cache.get_states(["b"])[0][0, 0].tolist() == [0, 2, 3]


def test_without_pages_nothing_is_kept() -> None:
    cache = make(num_pages=0)
    cache.claim("a")
    cache.keep("a", 7, 0)
    cache.forget(7)
    assert not cache.restorable(7)


def test_another_leaf_reads_nothing() -> None:
    cache = make()
    cache.claim("a")
    assert cache.inputs("draft", ["a"], [1]) is None


def test_errors_name_the_request_and_what_to_do() -> None:
    cache = make(max_slots=2)
    cache.claim("a")
    with pytest.raises(StateError, match="'a' is claimed already"):
        cache.claim("a")
    cache.claim("b")
    with pytest.raises(OutOfSlotsError, match="all 2 are owned"):
        cache.claim("c")
    with pytest.raises(StateError, match="cannot commit 1 rows of request 'a': 0 are reserved"):
        cache.commit("a", 1)
    cache.reserve("a", 2)
    with pytest.raises(StateError, match="commit them first"):
        cache.update_states(["a"], [torch.zeros(1, SIZE, 3)] * LAYERS)
    with pytest.raises(StateError, match=r"wanted 2 layers of \(1, 3, 3\)"):
        cache.update_states(["b"], [torch.zeros(1, SIZE, 2)] * LAYERS)
    with pytest.raises(StateError, match="wanted 2 layers"):
        cache.update_states(["b"], [torch.zeros(1, SIZE, 3)])
    cache.release("a")
    for call in (
        lambda: cache.release("a"),
        lambda: cache.get_states(["b", "a"]),
        lambda: cache.update_states(["a"], [torch.zeros(1, SIZE, 3)] * LAYERS),
        lambda: cache.reserve("a", 1),
        lambda: cache.commit("a", 0),
        lambda: cache.num_committed("a"),
        lambda: cache.inputs("kv", ["a"], [1]),
    ):
        with pytest.raises(StateError, match="'a' is not claimed"):
            call()
    cache.claim("c")
    assert not cache.get_states(["c"])[0].any()
