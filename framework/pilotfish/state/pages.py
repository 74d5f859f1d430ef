"""PagePool: who owns which page, counted in plain ints.

Knows: free, owned, shared, published and cached pages. Does not know: tensors, tokens or requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from pilotfish.errors import OutOfPagesError, StateError


class PagePool:
    """Pages 0 to num_pages-1, each in one of three places.

    Free: nobody's, content worthless. Owned: referenced by one request or more. Cached: referenced
    by nobody, but published, so that a later request may share it; taken back, the longest unused
    first, when no free page is left. A published page is read-only from then on.

    num_pages: at least 1.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise StateError(f"num_pages is {num_pages}; wanted at least 1: raise num_pages")
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._refcounts = [0] * num_pages
        self._published = bytearray(num_pages)
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages on the free list."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages kept only for later sharing; they are given up when the free list is empty."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._free) + len(self._cached)

    @property
    def num_owned(self) -> int:
        """Pages that a request references, counted by their references."""
        return sum(count > 0 for count in self._refcounts)

    def free_pages(self) -> list[int]:
        """The pages of the free list."""
        return list(self._free)

    def refcount(self, page: int) -> int:
        """How many requests reference the page."""
        return self._refcounts[page]

    def is_published(self, page: int) -> bool:
        """Whether the page can be found by later requests, and so must keep its content."""
        return bool(self._published[page])

    def is_writable(self, page: int) -> bool:
        """Whether its one owner may write to the page."""
        return self._refcounts[page] == 1 and not self._published[page]

    def allocate(self, count: int, on_evict: Callable[[int], None] | None = None) -> list[int]:
        """Gives `count` pages with one reference each; free ones first, then cached ones.

        on_evict: called with each cached page before it is given away.
        Raises OutOfPagesError, with nothing changed, when there are not so many.
        """
        if count > self.num_available:
            raise OutOfPagesError(
                f"wanted {count} pages; {self.num_free} are free and {self.num_cached} cached of "
                f"{self.num_pages}: release a request or raise num_pages"
            )
        while len(self._free) < count:
            self._evict_oldest(on_evict)
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._refcounts[page] = 1
        return pages

    def share(self, page: int) -> None:
        """Adds a reference to a page that is owned or cached. Raises StateError for a free one."""
        if self._refcounts[page] == 0:
            if page not in self._cached:
                raise StateError(f"page {page} is free; wanted an owned or cached page to share")
            del self._cached[page]
        self._refcounts[page] += 1

    def publish(self, page: int) -> None:
        """Makes an owned page read-only, and cached once nobody references it."""
        self._want_owned(page, "publish")
        self._published[page] = 1

    def free(self, page: int) -> bool:
        """Drops one reference. Returns whether the page went to the free list.

        The last reference of a published page sends it to the youngest end of the cache.
        """
        self._want_owned(page, "free")
        self._refcounts[page] -= 1
        if self._refcounts[page]:
            return False
        if self._published[page]:
            self._cached[page] = None
            return False
        self._free.append(page)
        return True

    def unpublish_all(self) -> list[int]:
        """Forgets every published page. Returns the cached ones, which are now free."""
        freed = list(self._cached)
        self._published = bytearray(self.num_pages)
        self._cached.clear()
        self._free.extend(reversed(freed))
        return freed

    def _evict_oldest(self, on_evict: Callable[[int], None] | None) -> None:
        page, _ = self._cached.popitem(last=False)
        self._published[page] = 0
        self._free.append(page)
        if on_evict is not None:
            on_evict(page)

    def _want_owned(self, page: int, verb: str) -> None:
        if self._refcounts[page] == 0:
            raise StateError(f"cannot {verb} page {page}: nobody owns it; wanted an owned page")
