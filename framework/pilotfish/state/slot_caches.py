"""SlotCache: what a cache without pages offers to the manager, and the group of all of them.

Knows: the order of calls, and what a failing call leaves behind. Does not know: any one cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pilotfish.contracts import check_methods
from pilotfish.state.request_blocks import FullPage

if TYPE_CHECKING:
    from pilotfish.state.inputs import SlotInputs


class SlotCache(Protocol):
    """A cache of its own geometry (a slot a request, say) that lives and dies with the pages.

    It hears of every claim, reserve, commit and release, so that its length is always the pages'
    length. It may keep snapshots of its state at page boundaries, each filed under the page that
    ends there; a prefix hit is shortened to the longest boundary that every cache can restore.

    claim -> [reserve n -> forward writes rows len..len+n -> commit a <= n]* -> release. After
    commit the state is what feeding only the committed tokens would have left. Rows past the
    committed length are scratch: nobody may read them.

    A reserve replaces an uncommitted one. commit must not fail for a number of tokens that was
    reserved; if it does all the same, the manager drops the request's state in every cache.
    """

    def claim(self, request_id: str) -> None:
        """Registers a request. Raises StateError when it is already claimed."""
        ...

    def reserve(self, request_id: str, num_tokens: int) -> None:
        """Makes room for n rows after the committed ones. Raises OutOfPagesError when full."""
        ...

    def commit(self, request_id: str, num_tokens: int) -> None:
        """Keeps the first a of the reserved rows; the others never happened."""
        ...

    def release(self, request_id: str) -> None:
        """Gives everything back. Raises StateError for a request that is not claimed."""
        ...

    def num_committed(self, request_id: str) -> int:
        """Rows that count."""
        ...

    def inputs(
        self,
        cache_name: str,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        skip: Sequence[int] | None,
    ) -> SlotInputs | None:
        """What a pass over the paged cache `cache_name` must know of this cache; None if it reads
        nothing.

        The arguments are those of `StateManager.kv_inputs`, and checked. Changes nothing.
        """
        ...

    def restorable(self, page: int) -> bool:
        """Whether a request can start right after the last row of `page`."""
        ...

    def restore(self, request_id: str, page: int, num_tokens: int) -> None:
        """Puts a request, claimed and empty, at the boundary that ends `page`: num_tokens rows."""
        ...

    def keep(self, request_id: str, page: int, num_tokens: int) -> None:
        """Offers the boundary num_tokens, which ends `page`, for a snapshot.

        Called just before the commit that makes the page sharable, while the reserved rows are
        still at hand. The boundary may lie `lookahead` rows behind the committed length or anywhere
        in the rows about to be committed. `page` may be another request's page of equal content.
        """
        ...

    def forget(self, page: int) -> None:
        """Drops the snapshot filed under `page`, if there is one."""
        ...

    def clear(self) -> None:
        """Back to no request and no snapshot, also when another call was interrupted half way.

        A cache without it is asked to release every request and to forget every page.
        """
        ...


class SlotCaches:
    """All slot caches, told as one: each call reaches all of them or leaves their lengths."""

    def __init__(self, caches: Sequence[SlotCache] = ()) -> None:
        for cache in caches:
            check_methods(cache, SlotCache, "what `make_cache` returned", optional=["clear"])
        self._caches = tuple(caches)
        self._told: set[str] = set()  # of every request of which any cache may hold something

    @property
    def has_caches(self) -> bool:
        """Whether there is any."""
        return bool(self._caches)

    def inputs(
        self,
        cache_name: str,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        skip: Sequence[int] | None,
    ) -> tuple[SlotInputs, ...]:
        """The views of the caches that a pass over a paged cache reads."""
        found = (cache.inputs(cache_name, request_ids, row_counts, skip) for cache in self._caches)
        return tuple(view for view in found if view is not None)

    def restorable(self, page: int) -> bool:
        """Whether every cache can restore the boundary that ends `page`."""
        return all(cache.restorable(page) for cache in self._caches)

    def claim(self, request_id: str, page: int | None = None, num_tokens: int = 0) -> None:
        """Claims in all caches, at the boundary that ends `page` if given; all or none."""
        claimed: list[SlotCache] = []
        self._told.add(request_id)
        try:
            for cache in self._caches:
                cache.claim(request_id)
                claimed.append(cache)
                if page is not None:
                    cache.restore(request_id, page, num_tokens)
        except BaseException:
            for cache in claimed:
                cache.release(request_id)
            raise

    def reserve(self, request_id: str, num_rows: int, num_before: int) -> None:
        """Reserves in all caches; on failure those told so far get num_before rows again."""
        told: list[SlotCache] = []
        try:
            for cache in self._caches:
                cache.reserve(request_id, num_rows)
                told.append(cache)
        except BaseException:
            for cache in told:
                cache.reserve(request_id, num_before)
            raise

    def commit(self, request_id: str, num_tokens: int, full: Sequence[FullPage]) -> None:
        """Offers the boundaries to keep, then commits, cache by cache.

        A failure leaves the caches apart: the caller must `reset` the request.
        """
        for cache in self._caches:
            for page in full:
                cache.keep(request_id, page.holder, page.num_tokens)
            cache.commit(request_id, num_tokens)

    def reset(self, request_id: str, full: Sequence[FullPage]) -> None:
        """Back to claimed and empty in every cache, without the snapshots of unpublished pages."""
        for cache in self._caches:
            with suppress(Exception):
                for page in full:
                    if page.is_new:
                        cache.forget(page.page)
            with suppress(Exception):
                cache.release(request_id)
            cache.claim(request_id)

    def release(self, request_id: str) -> None:
        """Releases in every cache, also past a failure; the first failure is raised at the end."""
        failure: Exception | None = None
        for cache in self._caches:
            try:
                cache.release(request_id)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self._told.discard(request_id)

    def forget(self, page: int) -> None:
        """Drops every snapshot filed under a page."""
        for cache in self._caches:
            cache.forget(page)

    def clear(self, pages: Sequence[int]) -> None:
        """No request and no snapshot in any cache. pages: all that there are."""
        for cache in self._caches:
            if hasattr(cache, "clear"):
                cache.clear()
                continue
            for page in pages:
                cache.forget(page)
            for request_id in self._told:
                with suppress(Exception):  # of one that this cache does not know
                    cache.release(request_id)
        self._told.clear()

    def lengths(self, request_id: str) -> list[int]:
        """Committed rows of the request in each cache."""
        return [cache.num_committed(request_id) for cache in self._caches]
