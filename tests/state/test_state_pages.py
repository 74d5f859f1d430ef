"""PagePool and PrefixIndex by themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pilotfish.errors import OutOfPagesError, StateError
from pilotfish.state import PagePool, PrefixIndex
from strategies import any_keys, page_sizes


def test_a_fresh_pool_gives_pages_in_order() -> None:
    pool = PagePool(5)
    assert pool.allocate(2) == [0, 1]
    assert pool.allocate(3) == [2, 3, 4]
    assert (pool.num_free, pool.num_cached, pool.num_owned) == (0, 0, 5)


def test_allocate_takes_all_or_nothing() -> None:
    pool = PagePool(3)
    pool.allocate(1)
    with pytest.raises(OutOfPagesError, match=r"wanted 3 pages; 2 are free and 0 cached of 3"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_a_shared_page_is_freed_by_its_last_owner() -> None:
    pool = PagePool(2)
    (page,) = pool.allocate(1)
    pool.share(page)
    assert not pool.is_writable(page)
    assert pool.free(page) is False
    assert pool.is_writable(page)
    assert pool.free(page) is True
    assert pool.num_free == 2


def test_published_pages_are_cached_and_the_longest_unused_is_evicted_first() -> None:
    evicted: list[int] = []
    pool = PagePool(3)
    a, b, c = pool.allocate(3)
    for page in (a, b):
        pool.publish(page)
    for page in (b, a, c):
        pool.free(page)
    assert (pool.num_free, pool.num_cached, pool.num_available) == (1, 2, 3)
    pool.share(b)
    pool.free(b)
    assert pool.allocate(1, evicted.append) == [c]
    assert evicted == []
    assert pool.allocate(1, evicted.append) == [a], "b was used after a"
    assert evicted == [a]
    assert pool.is_writable(a)


def test_misuse_is_an_error() -> None:
    pool = PagePool(2)
    for misuse in (pool.free, pool.share, pool.publish):
        with pytest.raises(StateError, match="page 0"):
            misuse(0)
    with pytest.raises(StateError, match="num_pages is 0"):
        PagePool(0)


def test_unpublish_all_frees_only_what_nobody_owns() -> None:
    pool = PagePool(3)
    owned, cached = pool.allocate(2)
    pool.publish(owned)
    pool.publish(cached)
    pool.free(cached)
    assert pool.unpublish_all() == [cached]
    assert (pool.num_free, pool.num_cached, pool.num_owned) == (2, 0, 1)
    assert pool.free(owned) is True


def publish_all(index: PrefixIndex, keys: list[int], salt: bytes = b"") -> list[int]:
    """Publishes pages 0, 1, ... for every full page of keys that lookahead allows."""
    chain, size = index.root(salt), index.page_size_tokens
    pages = list(range((len(keys) - index.lookahead) // size if keys else 0))
    for page in pages:
        end = (page + 1) * size
        chain = index.extend(chain, keys[end - size : end])
        index.publish(index.name(chain, keys[end : end + index.lookahead]), page)
    return pages


@given(size=page_sizes(), keys=any_keys(), asked=any_keys(), lookahead=st.integers(0, 2))
def test_match_is_the_common_beginning_in_whole_pages(
    size: int, keys: list[int], asked: list[int], lookahead: int
) -> None:
    assume(len(keys) >= lookahead)
    asked = keys[: len(asked)] + asked
    index = PrefixIndex(size, lookahead)
    published = publish_all(index, keys)
    common = next(
        (i for i, (a, b) in enumerate(zip(keys, asked, strict=False)) if a != b),
        min(len(keys), len(asked)),
    )
    usable = min(common - lookahead, len(asked) - 1)
    assert index.match(asked).pages == tuple(published[: max(0, usable) // size])


@pytest.mark.parametrize("length", range(1, 14))
def test_a_hit_leaves_the_last_token_of_any_prompt(length: int) -> None:
    index = PrefixIndex(4)
    publish_all(index, list(range(16)))
    assert len(index.match(list(range(length))).pages) == (length - 1) // 4


def test_salts_and_forgotten_pages_do_not_match() -> None:
    index = PrefixIndex(2)
    publish_all(index, [1, 2, 3, 4], b"a")
    assert index.match([1, 2, 3, 4, 5], b"a").pages == (0, 1)
    assert index.match([1, 2, 3, 4, 5], b"b").pages == ()
    index.forget(0)
    assert index.match([1, 2, 3, 4, 5], b"a").pages == ()
    index.clear()
    assert len(index) == 0


def test_keys_are_told_apart_as_numbers_not_as_digits() -> None:
    index = PrefixIndex(2)
    root = index.root()
    names = {
        index.extend(root, keys) for keys in ([1, 11], [11, 1], [-1, 11], [111, 1], [2**64, 1])
    }
    assert len(names) == 5
    assert index.extend(root, [1, 2]) != index.extend(index.extend(root, [1, 2]), [1, 2])


def test_one_content_has_one_page() -> None:
    index = PrefixIndex(1)
    name = index.extend(index.root(), [7])
    index.publish(name, 0)
    with pytest.raises(StateError, match="already published"):
        index.publish(name, 1)
    with pytest.raises(StateError, match="already published"):
        index.publish(index.extend(name, [7]), 0)


def test_the_pool_and_the_index_need_no_torch() -> None:
    code = "import sys, pilotfish.state as s; s.PagePool(1); s.PrefixIndex(1); s.MemoryPlan; "
    code += "s.StateManager(num_pages=2, page_size_tokens=4).claim('a', [1]); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
