"""PageChoice: how many pages a run has, and why.

Knows: bytes of a page, and what else takes memory. Does not know: what pages hold.
"""

from __future__ import annotations

import attrs

from pilotfish.config.cache import CacheConfig
from pilotfish.errors import CapacityError

CPU_STATE_BYTES = 2 << 30
"""On a CPU the pages take no more unasked: other programs live in that memory too."""
CPU_SHARE = 0.5
DEVICE_SHARE = 0.9
"""Shares of what is left after weights and activations that pages may take unasked."""
MOST_EMPTY_PAGES = 1 << 20
"""Of pages that take no memory in any cache there are no more, unless one context has more."""
SET_BY = "set by "


def unasked_bytes(left: int, device: str) -> int:
    """Bytes that pages take unasked where so many are left; see `CPU_STATE_BYTES`."""
    if device.startswith("cuda"):
        return int(max(0, left) * DEVICE_SHARE)
    return min(int(max(0, left) * CPU_SHARE), CPU_STATE_BYTES)


@attrs.frozen(kw_only=True)
class PageChoice:
    """How many pages, and why.

    page_bytes, slot_bytes: on one rank. all_page_bytes: of a page on all ranks of the machine.
    left: bytes that are available on the machine beside all that is no page.
    """

    cache: CacheConfig
    page_bytes: int
    slot_bytes: int
    all_page_bytes: int
    left: int
    device: str
    pages_per_context: int
    max_batch_size: int

    def choose(self) -> tuple[int, str]:
        """The number of pages and the reason in words."""
        if self.cache.num_pages is not None:
            return self.cache.num_pages, f"{SET_BY}num_pages"
        if self.cache.memory_bytes is not None:
            return self._from_bytes(self.cache.memory_bytes), f"{SET_BY}memory_bytes"
        wanted = self.pages_per_context * self.max_batch_size
        if self.page_bytes == 0:
            return self._free_pages()
        allowed = unasked_bytes(self.left, self.device) // self.all_page_bytes
        if wanted <= allowed:
            return wanted, f"{self.max_batch_size} full contexts"
        if allowed <= self.pages_per_context:
            return self.pages_per_context, "one full context"
        how = f"{DEVICE_SHARE:.0%} of the memory that is left"
        if not self.device.startswith("cuda"):
            how = f"{CPU_SHARE:.0%} of the memory that is left, and at most 2 GiB"
        return allowed, f"unasked they take {how}: num_pages gives more"

    def _free_pages(self) -> tuple[int, str]:
        """Of pages that hold nothing: as many as are wanted, but their books take memory too."""
        wanted = self.pages_per_context * self.max_batch_size
        if wanted <= MOST_EMPTY_PAGES:
            return wanted, f"{self.max_batch_size} full contexts"
        return max(self.pages_per_context, MOST_EMPTY_PAGES), "pages hold nothing of this model"

    def _from_bytes(self, memory_bytes: int) -> int:
        if self.page_bytes == 0:
            return self._free_pages()[0]
        num_pages = (memory_bytes - self.slot_bytes) // self.page_bytes
        if num_pages < 1:
            raise CapacityError(
                f"memory_bytes is {memory_bytes}; one page takes {self.page_bytes} bytes and the "
                f"slots {self.slot_bytes}: raise memory_bytes or lower max_batch_size"
            )
        return num_pages
