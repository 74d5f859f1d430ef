"""StateManager: the lifecycle of every request's state, over all caches at once.

Knows: lengths, pages, prefixes, and in which order the parts are told. Does not know: scheduling
or models. Axis letters: B requests, T packed tokens, W pages of the longest request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pilotfish.errors import OutOfPagesError, StateError
from pilotfish.state.pages import PagePool
from pilotfish.state.prefix import PrefixIndex, PrefixMatch
from pilotfish.state.request_blocks import FullPage, RequestBlocks
from pilotfish.state.slot_caches import SlotCaches
from pilotfish.state.tables import PageTables, write_slots

if TYPE_CHECKING:
    import torch

    from pilotfish.state.inputs import KVCacheInputs
    from pilotfish.state.paged import PagedCache
    from pilotfish.state.slot_caches import SlotCache
    from pilotfish.state.specs import PagedStateSpec


class StateManager:
    """claim -> [reserve -> forward writes -> commit]* -> release, for pages and slot caches.

    One length and one list of pages serve all paged caches of a request: a target's and its
    draft's. After every call, also one in which the pool or a cache raised, all caches agree on
    every request's length, and every page is owned, free or cached. Only an exception out of
    nowhere, as an interrupt is, may leave a call half done: `reset` is for after it.

    paged_caches: specs of the paged caches; their tensors are allocated here.
    prefix_caching: whether full pages are shared. lookahead: see `PrefixIndex`.
    slot_caches: caches without pages that follow the same lifecycle.
    poison: fill rows that nobody may read with NaN; for tests.
    """

    def __init__(
        self,
        paged_caches: Sequence[PagedStateSpec] = (),
        *,
        num_pages: int,
        page_size_tokens: int,
        device: torch.device | str = "cpu",
        prefix_caching: bool = True,
        lookahead: int = 0,
        slot_caches: Sequence[SlotCache] = (),
        poison: bool = False,
    ) -> None:
        self.page_size_tokens = page_size_tokens
        self.prefix_caching = prefix_caching
        self.pool = PagePool(num_pages)
        self.index = PrefixIndex(page_size_tokens, lookahead)
        self._tables = PageTables()
        self._slot_caches = SlotCaches(slot_caches)
        self._has_slots = self._slot_caches.has_caches
        self._requests: dict[str, RequestBlocks] = {}
        self._paged_caches: dict[str, PagedCache] = {}
        if paged_caches:
            from pilotfish.state.paged import make_paged_caches

            self._paged_caches = make_paged_caches(
                paged_caches,
                num_pages=num_pages,
                page_size_tokens=page_size_tokens,
                device=device,
                poison=poison,
            )
        self._poisoned = tuple(self._paged_caches.values()) if poison else ()

    # What there is

    @property
    def num_pages(self) -> int:
        """All pages."""
        return self.pool.num_pages

    @property
    def num_available_pages(self) -> int:
        """Pages that reservations can still take: free and cached."""
        return self.pool.num_available

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The claimed requests, oldest first."""
        return tuple(self._requests)

    def num_committed(self, request_id: str) -> int:
        """Rows of the request that count. Raises StateError when it is not claimed."""
        return self._request(request_id).num_committed

    def num_reserved(self, request_id: str) -> int:
        """Rows that the next commit may keep."""
        return len(self._request(request_id).reserved)

    def pages_of(self, request_id: str) -> tuple[int, ...]:
        """The request's page ids in order."""
        return tuple(self._request(request_id).pages)

    def paged_cache(self, name: str) -> PagedCache:
        """A paged cache's memory. Raises StateError when no paged cache has the name."""
        try:
            return self._paged_caches[name]
        except KeyError:
            known = ", ".join(map(repr, self._paged_caches)) or "none"
            raise StateError(f"no paged cache is named {name!r}; there are: {known}") from None

    def missing_pages(self, request_id: str, num_rows: int) -> int:
        """Pages that it lacks for so many rows past the committed ones."""
        request = self._request(request_id)
        wanted = -(-(request.num_committed + num_rows) // self.page_size_tokens)
        return max(0, wanted - len(request.pages))

    # What others compute

    @property
    def keeps_snapshots(self) -> bool:
        """Whether a prefix hit needs what slot caches keep, not pages alone."""
        return self.prefix_caching and self._has_slots

    def page_names(self, keys: Sequence[int], salt: bytes = b"") -> tuple[bytes, ...]:
        """The names of the pages that a prefix hit of these keys may find; see `PrefixIndex`."""
        if not self.prefix_caching:
            return ()
        return tuple(name for _, name in self.index.names(keys, salt))

    def num_restorable(self, names: Sequence[bytes]) -> int:
        """How many of the pages with these names, from the first, `claim` would share now."""
        pages: list[int] = []
        for name in names:
            page = self.index.find(name)
            if page is None:
                break
            pages.append(page)
        return self._num_restorable(pages)

    def rows_to_publish(self, num_pages: int) -> int:
        """Rows that a request has committed when its first pages can be found by others."""
        return num_pages * self.page_size_tokens + self.index.lookahead

    # The lifecycle

    def claim(self, request_id: str, keys: Sequence[int] = (), salt: bytes = b"") -> int:
        """Registers a request and gives it what the prefix cache holds of its beginning.

        keys: of all its rows so far, one int a token; empty to take no hit. The last one is always
        left to compute. salt: requests of different salts share nothing.
        Returns the number of rows restored, which are committed. Raises StateError when the
        request is claimed already.
        """
        if request_id in self._requests:
            raise StateError(f"request {request_id!r} is claimed already; release it first")
        hit = self._restorable_match(keys, salt)
        num_tokens = len(hit.pages) * self.page_size_tokens
        self._slot_caches.claim(request_id, hit.pages[-1] if hit.pages else None, num_tokens)
        root = self.index.root(salt)
        request = RequestBlocks(
            row=self._tables.claim_row(),
            root=root,
            chain=hit.chains[-1] if hit.chains else root,
            num_chained=len(hit.pages),
            num_committed=num_tokens,
        )
        self._requests[request_id] = request
        for page in hit.pages:
            self.pool.share(page)
            request.pages.append(page)
        self._tables.write(request.row, 0, request.pages)
        return num_tokens

    def reserve(self, request_id: str, keys: Sequence[int], scratch: int = 0) -> None:
        """Makes room for one row a key past the committed ones, and `scratch` more after those.

        Replaces a reservation that was not committed. Scratch rows may be written and read within
        the step but never committed. Raises OutOfPagesError, with nothing changed, when there are
        not enough pages.
        """
        request = self._request(request_id)
        self._want_writable(request_id, request, scratch)
        num_new = len(keys) + scratch
        num_before = len(request.pages)
        wanted = -(-(request.num_committed + num_new) // self.page_size_tokens)
        if wanted > num_before:
            self._grow(request_id, request, wanted)
        if self._has_slots:
            try:
                num_reserved = len(request.reserved) + request.num_scratch
                self._slot_caches.reserve(request_id, num_new, num_reserved)
            except BaseException:
                self._shrink(request, num_before)
                raise
        if wanted < num_before:
            self._shrink(request, wanted)
        request.reserved = list(keys)
        request.num_scratch = scratch

    def commit(self, request_id: str, num_tokens: int) -> None:
        """Keeps the first num_tokens reserved rows; the others, and all scratch, never happened.

        Pages that became full are published. Raises StateError when fewer rows were reserved. If a
        slot cache fails to commit, the request stays claimed with nothing committed, in
        every cache, and the cache's error is raised: prefill it again, or release it.
        """
        request = self._request(request_id)
        if not 0 <= num_tokens <= len(request.reserved):
            raise StateError(
                f"cannot commit {num_tokens} rows of request {request_id!r}: "
                f"{len(request.reserved)} are reserved; reserve them first"
            )
        tail = request.tail + request.reserved[:num_tokens] if self.prefix_caching else []
        is_full = len(tail) >= self.page_size_tokens + self.index.lookahead
        full = request.full_pages(tail, self.index) if is_full else []
        if self._has_slots:
            try:
                self._slot_caches.commit(request_id, num_tokens, full)
            except BaseException:
                self._shrink(request, 0)
                request.empty()
                self._slot_caches.reset(request_id, full)
                raise
        request.num_committed += num_tokens
        self._drop_reserved(request)
        if full:
            self._publish(request, full)
        request.tail = tail[len(full) * self.page_size_tokens :]

    def release(self, request_id: str) -> None:
        """Gives everything back: published pages to the cache, the others to the free list.

        Raises StateError when the request is not claimed. If a slot cache fails, all the
        others are released before its error is raised.
        """
        request = self._request(request_id)
        del self._requests[request_id]
        self._shrink(request, 0)
        self._tables.release_row(request.row)
        self._slot_caches.release(request_id)

    def forget_cached(self) -> None:
        """Empties the prefix cache; requests that run keep their pages."""
        pages = self.index.pages()
        self.index.clear()
        self._poison(self.pool.unpublish_all())
        for page in pages:
            self._slot_caches.forget(page)

    def reset(self) -> None:
        """Back to no request and an empty prefix cache, whatever was left half done.

        Looks at nothing that an interrupted call may have spoilt; may itself be begun again.
        """
        self._slot_caches.clear(range(self.num_pages))
        self.index.clear()
        self.pool = PagePool(self.num_pages)
        self._tables = PageTables()
        self._requests.clear()
        self._poison(range(self.num_pages))

    # What a pass needs

    def kv_inputs(
        self,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        cache_name: str = "kv",
        skip: Sequence[int] | None = None,
    ) -> KVCacheInputs:
        """Where the rows of one pass lie in a paged cache, requests in the order of the batch.

        row_counts: [B], rows of this pass, all of them reserved.
        skip: [B], rows written earlier in this step and not committed yet: the pass continues
            after them and reads them. None means none.
        Raises StateError when a row was not reserved.
        """
        from pilotfish.state.inputs import KVCacheInputs

        memory = self.paged_cache(cache_name)
        size = self.page_size_tokens
        slots: list[int] = []
        lengths: list[int] = []
        rows: list[int] = []
        page_counts: list[int] = []
        for b, (request_id, count) in enumerate(zip(request_ids, row_counts, strict=True)):
            request = self._request(request_id)
            start = request.num_committed + (skip[b] if skip is not None else 0)
            stop = request.num_committed + len(request.reserved) + request.num_scratch
            if count < 0 or start < request.num_committed or start + count > stop:
                raise StateError(
                    f"rows {start} to {start + count} of request {request_id!r} are not reserved: "
                    f"{request.num_committed} are committed and {stop} reserved"
                )
            if count == 1:
                slots.append(request.pages[start // size] * size + start % size)
            else:
                slots.extend(write_slots(request.pages, start, count, size))
            lengths.append(start)
            rows.append(request.row)
            page_counts.append(len(request.pages))
        slots_T, lengths_B, table_BW = self._tables.pack(
            rows, max([1, *page_counts]), slots, lengths, memory.device
        )
        return KVCacheInputs(
            blocks=memory.blocks,
            lookup_table=table_BW,
            cache_lengths=lengths_B,
            write_slots=slots_T,
            page_size_tokens=size,
            lengths=tuple(lengths),
            row_counts=tuple(row_counts),
            page_counts=tuple(page_counts),
            slots=self._slot_caches.inputs(cache_name, request_ids, row_counts, skip)
            if self._has_slots
            else (),
        )

    def check(self) -> None:
        """Raises StateError when the books do not balance; slow, for tests and after failures."""
        from pilotfish.state.audit import audit, audit_request

        audit(self.pool, self.index, self._requests)
        for request_id, request in self._requests.items():
            table = self._tables.gather([request.row], len(request.pages) + 1)[0].tolist()
            audit_request(
                request_id,
                request,
                self.pool,
                self.page_size_tokens,
                table=table,
                lengths=self._slot_caches.lengths(request_id),
            )

    # Parts

    def _request(self, request_id: str) -> RequestBlocks:
        try:
            return self._requests[request_id]
        except KeyError:
            raise StateError(f"request {request_id!r} is not claimed; claim it first") from None

    def _want_writable(self, request_id: str, request: RequestBlocks, scratch: int) -> None:
        """The page with the next row, if there is one, must be the request's alone."""
        index = request.num_committed // self.page_size_tokens
        if scratch < 0:
            raise StateError(f"scratch is {scratch} for request {request_id!r}; wanted 0 or more")
        if index < len(request.pages) and not self.pool.is_writable(request.pages[index]):
            raise StateError(
                f"request {request_id!r} would write to page {request.pages[index]}, which is "
                "shared or published; wanted a page of its own"
            )

    def _restorable_match(self, keys: Sequence[int], salt: bytes) -> PrefixMatch:
        """The prefix hit, cut to the longest boundary that every slot cache can restore."""
        if not self.prefix_caching or not keys:
            return PrefixMatch(pages=(), chains=())
        hit = self.index.match(keys, salt)
        count = self._num_restorable(hit.pages)
        return PrefixMatch(pages=hit.pages[:count], chains=hit.chains[:count])

    def _num_restorable(self, pages: Sequence[int]) -> int:
        count = len(pages)
        while count and not self._slot_caches.restorable(pages[count - 1]):
            count -= 1
        return count

    def _grow(self, request_id: str, request: RequestBlocks, wanted: int) -> None:
        num_before = len(request.pages)
        try:
            pages = self.pool.allocate(wanted - num_before, self._forget_page)
        except OutOfPagesError as error:
            raise OutOfPagesError(f"request {request_id!r}: {error}") from None
        self._poison(pages)
        request.pages.extend(pages)
        self._tables.write(request.row, num_before, pages)

    def _shrink(self, request: RequestBlocks, wanted: int) -> None:
        """Frees the pages past `wanted`, the last one first: prefixes outlive what follows them."""
        num_before = len(request.pages)
        if wanted >= num_before:
            return
        freed = []
        while len(request.pages) > wanted:
            page = request.pages.pop()
            if self.pool.free(page):
                freed.append(page)
        self._tables.cut(request.row, wanted, num_before)
        self._poison(freed)

    def _drop_reserved(self, request: RequestBlocks) -> None:
        wanted = -(-request.num_committed // self.page_size_tokens)
        if self._poisoned and request.num_committed % self.page_size_tokens:
            for cache in self._poisoned:
                offset = request.num_committed % self.page_size_tokens
                cache.poison_rows(request.pages[wanted - 1], offset, self.page_size_tokens)
        request.reserved = []
        request.num_scratch = 0
        if wanted < len(request.pages):
            self._shrink(request, wanted)

    def _publish(self, request: RequestBlocks, full: Sequence[FullPage]) -> None:
        """Publishes pages of new content; a page of known content stays its owner's alone."""
        for page in full:
            if page.is_new:
                self.index.publish(page.name, page.page)
                self.pool.publish(page.page)
            request.chain = page.chain
            request.num_chained += 1

    def _forget_page(self, page: int) -> None:
        self.index.forget(page)
        self._slot_caches.forget(page)

    def _poison(self, pages: Sequence[int]) -> None:
        for cache in self._poisoned:
            cache.poison_pages(pages)
