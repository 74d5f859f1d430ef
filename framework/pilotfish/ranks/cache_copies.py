"""CacheCopies: a worker's slot caches, which hear what the driver's heard.

Knows: the calls that a `MirroredCache` notes. Does not know: what any cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pilotfish.errors import StateError

if TYPE_CHECKING:
    from pilotfish.ranks.messages import Key
    from pilotfish.state import SlotCache, SlotInputs


class CacheCopies:
    """caches: by the names of their specs. Its methods are what is noted."""

    def __init__(self, caches: Mapping[str, SlotCache]) -> None:
        self.caches = caches
        self.views: dict[Key, SlotInputs] = {}

    def change(self, cache: str, name: str, arguments: tuple[Any, ...], failed: str | None) -> None:
        """failed: the exception's type; "" for an interrupt: how far it came is not known.

        Raises StateError where the driver's cache raised and this one did not, or another error.
        """
        got: str | None = None
        try:
            getattr(self.caches[cache], name)(*arguments)
        except Exception as error:
            if failed is None:
                raise
            got = type(error).__name__
        if failed and got != failed:
            raise StateError(f"{name} of cache {cache!r} raised {failed} on rank 0 and {got} here")

    def view(  # noqa: PLR0917
        self,
        cache: str,
        key: Key,
        cache_name: str,
        request_ids: tuple[str, ...],
        row_counts: tuple[int, ...],
        skip: tuple[int, ...] | None,
    ) -> None:
        """Keeps a pass's view of a cache."""
        found = self.caches[cache].inputs(cache_name, request_ids, row_counts, skip)
        assert found is not None, f"{cache!r} has a view of this pass on rank 0"
        self.views[key] = found

    def next_view(self, before: Key, key: Key) -> None:
        """Keeps the view of the next row."""
        self.views[key] = self.views[before].next_row()

    def drop_view(self, key: Key) -> None:
        """The driver's is gone; an interrupt may have kept this one from being made."""
        self.views.pop(key, None)
