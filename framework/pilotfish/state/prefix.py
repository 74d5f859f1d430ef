"""PrefixIndex: finds pages whose rows were already computed for the same beginning.

Knows: digests of key chains and the page each names. Does not know: tensors, owners or requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import attrs

from pilotfish.errors import StateError

DIGEST_BYTES = 32


@attrs.frozen(kw_only=True)
class PrefixMatch:
    """pages: in order from the beginning. chains: the chain digest after each of them."""

    pages: tuple[int, ...]
    chains: tuple[bytes, ...]


class PrefixIndex:
    """Content-addressed pages: same salt and same keys from the beginning, same page.

    A page's chain digest is BLAKE2b-256 of (digest of the page before, its S keys), beginning with
    the salt. Keys are not kept: two chains are taken for equal only when 256 bits agree, and
    parents are digests, never page ids, so that a reused page cannot be mistaken for its
    predecessor. A key is any int that decides a row's content together with the keys before it: a
    token id, or the hash of an image.

    lookahead: rows of a page that depend on keys after it, as the last rows of a draft may: such a
    page is found only by a request that agrees on that many more keys.
    """

    def __init__(self, page_size_tokens: int, lookahead: int = 0) -> None:
        if page_size_tokens < 1 or lookahead < 0:
            raise StateError(
                f"page_size_tokens is {page_size_tokens} and lookahead {lookahead}; wanted at "
                "least 1 and at least 0"
            )
        self.page_size_tokens = page_size_tokens
        self.lookahead = lookahead
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._name_of

    def pages(self) -> set[int]:
        """Every page that can be found."""
        return set(self._name_of)

    def root(self, salt: bytes = b"") -> bytes:
        """The digest before the first page; requests of different salts never share."""
        return blake2b(salt, digest_size=DIGEST_BYTES, person=b"root").digest()

    def extend(self, chain: bytes, keys: Sequence[int]) -> bytes:
        """The chain digest after one more page of S keys."""
        return _digest(b"page", chain, keys)

    def name(self, chain: bytes, next_keys: Sequence[int]) -> bytes:
        """The name under which the page that ends `chain` is found. next_keys: `lookahead` keys."""
        return _digest(b"ahead", chain, next_keys) if self.lookahead else chain

    def match(self, keys: Sequence[int], salt: bytes = b"") -> PrefixMatch:
        """The longest run of published pages that begins `keys` and leaves at least one key over.

        The last key's row is always computed anew: its logits are wanted.
        """
        pages, chains = [], []
        for chain, name in self.names(keys, salt):
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
            chains.append(chain)
        return PrefixMatch(pages=tuple(pages), chains=tuple(chains))

    def names(self, keys: Sequence[int], salt: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Chain digest and name of every page that `match` may find, published or not."""
        size, chain = self.page_size_tokens, self.root(salt)
        last_start = len(keys) - max(1, self.lookahead) - size
        for start in range(0, last_start + 1, size):
            end = start + size
            chain = self.extend(chain, keys[start:end])
            yield chain, self.name(chain, keys[end : end + self.lookahead])

    def find(self, name: bytes) -> int | None:
        """The page published under a name."""
        return self._page_of.get(name)

    def publish(self, name: bytes, page: int) -> None:
        """Makes a full, committed page findable. Raises StateError when either is taken."""
        if name in self._page_of or page in self._name_of:
            raise StateError(
                f"page {page} or its content is already published; wanted each page and each "
                "content once: look with `find` first"
            )
        self._page_of[name] = page
        self._name_of[page] = name

    def forget(self, page: int) -> None:
        """Makes a page unfindable, before its content goes."""
        del self._page_of[self._name_of.pop(page)]

    def clear(self) -> None:
        """Forgets every page."""
        self._page_of.clear()
        self._name_of.clear()


def _digest(kind: bytes, chain: bytes, keys: Sequence[int]) -> bytes:
    """Keys are written in decimal with commas: injective for ints of any size."""
    text = ",".join(map(str, keys)).encode()
    return blake2b(chain + text, digest_size=DIGEST_BYTES, person=kind).digest()
