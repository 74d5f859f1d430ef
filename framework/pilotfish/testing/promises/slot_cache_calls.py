"""What caches without pages must do when they are called by themselves: lengths, errors, memory.

Knows: the calls of `SlotCache`, and what a spec declares. Does not know: passes or rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pilotfish.errors import StateError
from pilotfish.protocols import PipelineModel
from pilotfish.state import SlotCache, SlotStateSpec
from pilotfish.testing.held import held_by
from pilotfish.testing.outcome import Broken, want
from pilotfish.testing.subject import PAGE_SIZE

SLOTS, PAGES, ROWS = 4, 8, 64
"""Of the smaller of two caches that are compared; the larger has twice as many of one of them."""
TABLES = 1024
"""Bytes that no spec declares: lengths and places, say."""
Make = Callable[..., SlotCache]
"""Makes a cache of one spec, of SLOTS and PAGES unless it is told others."""
ROUNDS = 3
"""Of requests that come and go: what is left of them grows with their number."""


def want_calls_and_memory(model: PipelineModel) -> None:
    """Raises Broken for the first cache that does not do what its calls or its spec say."""
    for spec in model.state:
        if isinstance(spec, SlotStateSpec):
            make = partial(model.make_cache, spec, max_slots=SLOTS, num_pages=PAGES)
            _want_lengths(make())
            _want_refused(make())
            _want_boundaries(make(), spec)
            _want_no_rest(make)
            _want_declared(make, spec)


def name_of(cache: SlotCache) -> str:
    """A cache's class, as messages say it."""
    return f"{type(cache).__module__}.{type(cache).__qualname__}"


def _feed(cache: SlotCache, request_id: str, num_tokens: int) -> None:
    cache.reserve(request_id, num_tokens)
    cache.commit(request_id, num_tokens)


def _want_length(cache: SlotCache, request_id: str, length: int, when: str) -> None:
    got = cache.num_committed(request_id)
    want(
        got == length,
        f"{name_of(cache)}.num_committed is {got} {when}",
        f"{length}: a cache's length is that of the request's pages",
    )


def _want_lengths(cache: SlotCache) -> None:
    """`num_committed` counts the rows that were committed, and those only."""
    cache.claim("a")
    _want_length(cache, "a", 0, "after a claim")
    cache.reserve("a", 3)
    _want_length(cache, "a", 0, "after a reserve of 3 rows")
    cache.commit("a", 2)
    _want_length(cache, "a", 2, "after a commit of 2 of 3 rows")
    cache.reserve("a", 5)
    cache.reserve("a", 2)
    cache.commit("a", 0)
    _want_length(cache, "a", 2, "after 2 rows and a commit of none")
    cache.release("a")
    cache.claim("a")
    _want_length(cache, "a", 0, "after a release and a new claim")


def _want_refused(cache: SlotCache) -> None:
    """A second claim, and a release of what is not claimed, raise StateError and change nothing."""
    for name, length in (("a", 2), ("b", 3)):
        cache.claim(name)
        _feed(cache, name, length)
    _want_state_error(cache, partial(cache.claim, "a"), "a second claim of a request")
    _want_state_error(cache, partial(cache.release, "c"), "a release of what was never claimed")
    cache.release("b")
    _want_state_error(cache, partial(cache.release, "b"), "a second release of a request")
    _want_length(cache, "a", 2, "after calls that had to raise")


def _want_state_error(cache: SlotCache, call: Callable[[], None], what: str) -> None:
    said = "raised nothing"
    try:
        call()
    except StateError:
        return
    except Exception as error:  # a plugin may raise anything
        said = f"raised {type(error).__name__}: {error}"
    want(False, f"{name_of(cache)}: {what} {said}", "a StateError, with nothing changed")


def _want_boundaries(cache: SlotCache, spec: SlotStateSpec) -> None:
    """What is kept can be restored at its length, and what is forgotten, or never was kept, not."""
    _want_none_restorable(cache, "before anything was kept")
    cache.forget(0)
    cache.claim("a")
    for page in range(PAGES):
        _feed_page(cache, "a", page)
    found = list(filter(cache.restorable, range(PAGES)))
    if spec.boundary_shape is None:
        _want_none_restorable(cache, "though its spec has no boundary_shape")
    for page in found[-1:]:
        cache.claim("b")
        length = (page + 1) * PAGE_SIZE
        cache.restore("b", page, length)
        _want_length(cache, "b", length, f"after a restore at row {length}")
        want(
            cache.restorable(page),
            f"{name_of(cache)}.restorable({page}) is false after a restore",
            "true: other requests may begin there too",
        )
    for page in range(PAGES):
        cache.forget(page)
    _want_none_restorable(cache, "after `forget` of every page")


def _want_none_restorable(cache: SlotCache, when: str) -> None:
    found = list(filter(cache.restorable, range(PAGES)))
    want(
        not found,
        f"{name_of(cache)} can restore the pages {found} {when}",
        "no page: nothing may be kept for one then",
    )


def _feed_page(cache: SlotCache, request_id: str, page: int) -> None:
    """The rows of one page more, and its boundary offered as the manager does."""
    cache.reserve(request_id, PAGE_SIZE)
    cache.keep(request_id, page, (page + 1) * PAGE_SIZE)
    cache.commit(request_id, PAGE_SIZE)


def _want_no_rest(make: Make) -> None:
    """Requests that are gone hold nothing, whatever they were doing."""
    for ending in ("release", "clear"):
        if ending == "clear" and not hasattr(make(), "clear"):
            continue  # an optional member: the manager releases and forgets
        cache = make()
        _come_and_go(cache, ending, 0)
        before = held_by(cache)
        for number in range(1, ROUNDS):
            _come_and_go(cache, ending, number)
        now, count = held_by(cache), (ROUNDS - 1) * SLOTS
        more = now.num_bytes - before.num_bytes, now.num_entries - before.num_entries
        want(
            max(more) <= 0,
            f"{name_of(cache)} holds {more[0]} bytes and {more[1]} entries more after {count} "
            f"requests more that came and went with `{ending}`",
            f"none: `{ending}` gives everything back",
        )


def _come_and_go(cache: SlotCache, ending: str, number: int) -> None:
    """Requests of new names: one only claimed, one fed, one with rows that are not committed."""
    names = [f"{number}.{slot}" for slot in range(SLOTS)]
    for name in names:
        try:
            cache.claim(name)
        except StateError as error:
            raise Broken(
                f"{name_of(cache)}: after {number * SLOTS} requests came and went with `{ending}` "
                f"a claim raised {type(error).__name__}: {error}",
                f"every slot free: `{ending}` gives everything back",
            ) from error
    for name in names[1:]:
        _feed_page(cache, name, 0)
        _feed(cache, name, 3)
    for name in names[2:]:
        cache.reserve(name, ROWS)
    if ending == "clear":
        cache.clear()
        return
    for name in names:
        cache.release(name)


def _want_declared(make: Make, spec: SlotStateSpec) -> None:
    """Twice the slots, kept pages or rows take no more memory than the spec says."""
    base = _bytes_held(make)
    for what, shape, said, more in (
        (f"{SLOTS} requests", "slot_shape", SLOTS * spec.bytes_per_slot, {"slots": 2 * SLOTS}),
        (f"{PAGES} pages", "boundary_shape", PAGES * spec.bytes_per_boundary, {"pages": 2 * PAGES}),
        (f"{ROWS} uncommitted rows", "row_shape", ROWS * spec.bytes_per_row, {"rows": 2 * ROWS}),
    ):
        held = _bytes_held(make, **more) - base
        want(
            held <= said + said // 8 + TABLES,
            f"{name_of(make())} holds {held} bytes for {what}; {spec.name!r} declares {said}",
            f"what it holds in {shape} and dtype of its SlotStateSpec: plans of memory count that",
        )


def _bytes_held(make: Make, *, slots: int = SLOTS, pages: int = PAGES, rows: int = ROWS) -> int:
    """Of a cache at its fullest."""
    cache = make(max_slots=slots, num_pages=pages)
    for slot in range(slots):
        cache.claim(f"{slot}")
        _feed(cache, f"{slot}", ROWS)
    cache.release("0")
    cache.claim("0")
    for page in range(pages):
        _feed_page(cache, "0", page)
    cache.reserve("0", rows)
    return held_by(cache).num_bytes
