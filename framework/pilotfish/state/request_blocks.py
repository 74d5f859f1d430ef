"""RequestBlocks: what the manager writes down about one claimed request.

Knows: its pages, lengths and the keys not yet published. Does not know: the pool or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pilotfish.state.prefix import PrefixIndex


@attrs.frozen(kw_only=True)
class FullPage:
    """A page that a commit makes sharable.

    page: the request's own page. holder: the page already published with that content, else `page`.
    name, chain: see `PrefixIndex`. num_tokens: the boundary that ends the page.
    """

    page: int
    holder: int
    name: bytes
    chain: bytes
    num_tokens: int

    @property
    def is_new(self) -> bool:
        """Whether no page with this content was published before."""
        return self.holder == self.page


@attrs.define(kw_only=True)
class RequestBlocks:
    """One claimed request.

    row: of the page tables.
    root, chain: digests before the first page, and after page num_chained.
    num_chained: pages whose keys are in `chain`. tail: committed keys past those pages.
    num_committed: rows that count. reserved: keys of the rows that may be committed next.
    num_scratch: rows past those that may be written within the step.
    pages: ids in order.
    """

    row: int
    root: bytes
    chain: bytes
    num_chained: int = 0
    num_committed: int = 0
    num_scratch: int = 0
    pages: list[int] = attrs.field(factory=list)
    tail: list[int] = attrs.field(factory=list)
    reserved: list[int] = attrs.field(factory=list)

    @property
    def num_rows(self) -> int:
        """Rows that may be written or read: committed, reserved and scratch."""
        return self.num_committed + len(self.reserved) + self.num_scratch

    def empty(self) -> None:
        """Back to nothing committed and nothing reserved; the pages are the caller's to free."""
        self.chain = self.root
        self.num_chained = self.num_committed = self.num_scratch = 0
        self.tail, self.reserved = [], []

    def full_pages(self, tail: Sequence[int], index: PrefixIndex) -> list[FullPage]:
        """The pages whose rows, and lookahead keys, are all in `tail`. Changes nothing.

        tail: the keys past page num_chained that a commit would leave.
        """
        size, ahead = index.page_size_tokens, index.lookahead
        full: list[FullPage] = []
        chain = self.chain
        for start in range(0, len(tail) - size - ahead + 1, size):
            end = start + size
            chain = index.extend(chain, tail[start:end])
            name = index.name(chain, tail[end : end + ahead])
            place = self.num_chained + len(full)
            page, found = self.pages[place], index.find(name)
            holder = page if found is None else found
            boundary = (place + 1) * size
            full.append(
                FullPage(page=page, holder=holder, name=name, chain=chain, num_tokens=boundary)
            )
        return full
