"""The books of the page pool: every page in exactly one place, every reference accounted for.

Knows: what must hold between any two calls. Does not know: how to mend it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pilotfish.errors import StateError
from pilotfish.state.pages import PagePool
from pilotfish.state.prefix import PrefixIndex
from pilotfish.state.request_blocks import RequestBlocks


def audit(pool: PagePool, index: PrefixIndex, request_blocks: Mapping[str, RequestBlocks]) -> None:
    """Raises StateError for the first page whose place, references or publication are wrong.

    request_blocks: of every claimed request.
    """
    references = Counter(page for blocks in request_blocks.values() for page in blocks.pages)
    free = pool.free_pages()
    owned, num_free, cached = len(references), len(free), pool.num_cached
    if owned + num_free + cached != pool.num_pages or pool.num_owned != owned:
        raise StateError(
            f"{owned} owned ({pool.num_owned} by the pool) + {num_free} free + {cached} cached "
            f"pages; wanted {pool.num_pages} in all"
        )
    if len(set(free)) != num_free:
        raise StateError(f"the free list holds a page twice: {sorted(free)}")
    is_free = set(free)
    for page in range(pool.num_pages):
        count, published = references[page], pool.is_published(page)
        if pool.refcount(page) != count:
            raise StateError(f"page {page} counts {pool.refcount(page)} references, has {count}")
        if published != (page in index):
            raise StateError(f"page {page}: published {published}, in the index {not published}")
        if page in is_free and (count or published):
            raise StateError(f"page {page} is free, but owned by {count} or published {published}")
        if not published and page not in is_free and not count:
            raise StateError(f"page {page} is nowhere: not free, owned or published")


def audit_request(
    request_id: str,
    blocks: RequestBlocks,
    pool: PagePool,
    page_size_tokens: int,
    *,
    table: Sequence[int],
    lengths: Sequence[int],
) -> None:
    """Raises StateError when one request's pages, lengths and tables do not agree.

    table: its row of the page tables, up to the first entry past its pages, which is 0, where the
        row is wide enough to have one.
    lengths: its committed rows in each slot cache.
    """
    wanted = -(-blocks.num_rows // page_size_tokens)
    if len(blocks.pages) != wanted or list(table) not in ([*blocks.pages, 0], blocks.pages):
        raise StateError(
            f"request {request_id!r}: pages {blocks.pages}, table {list(table)}; wanted the "
            f"same with a 0 after them, and {wanted} pages for {blocks.num_rows} rows"
        )
    if any(length != blocks.num_committed for length in lengths):
        raise StateError(
            f"request {request_id!r}: {blocks.num_committed} rows committed, slot caches have "
            f"{list(lengths)}; wanted all equal"
        )
    for page in blocks.pages[blocks.num_committed // page_size_tokens :]:
        if not pool.is_writable(page):
            raise StateError(
                f"request {request_id!r} may write to page {page}, which is shared or published; "
                "wanted such pages read-only"
            )
