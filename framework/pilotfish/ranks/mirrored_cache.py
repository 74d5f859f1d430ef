"""MirroredCache: a slot cache whose workers' copies hear of all that it hears of.

Knows: the calls of `SlotCache`, and that a worker's cache answers them alike. Does not know: what
any cache holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from pilotfish.ranks.messages import Call, Key

if TYPE_CHECKING:
    from pilotfish.state import SlotCache, SlotInputs

LIFECYCLE = ("claim", "reserve", "commit", "release", "restore", "keep", "forget", "clear")
"""Calls that change a cache."""
CHANGE, VIEW, NEXT_VIEW, DROP_VIEW = "change", "view", "next_view", "drop_view"
"""Calls of a worker that follow from those of a cache here; see `CacheCopies`."""


class MirroredCache:
    """A `SlotCache` that does each call on `own` and notes it for the workers.

    name: of its spec. log: where it notes. keys: what workers call the views of passes that are
    alive here, by `id`: the worker keeps a view for as long as this process does.
    """

    def __init__(self, own: SlotCache, name: str, log: list[Call], keys: dict[int, Key]) -> None:
        self._own, self._name, self._log, self._keys = own, name, log, keys
        self._numbers = count()
        self._kinds: dict[type, type] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._own, name)
        return partial(self._change, name, found) if name in LIFECYCLE else found

    def inputs(
        self,
        cache_name: str,
        request_ids: Sequence[str],
        row_counts: Sequence[int],
        skip: Sequence[int] | None,
    ) -> SlotInputs | None:
        """As the cache's own; what it returns can be sent."""
        view = self._own.inputs(cache_name, request_ids, row_counts, skip)
        if view is None:
            return None
        key = self._new_key()
        skipped = None if skip is None else tuple(skip)
        rows = tuple(request_ids), tuple(row_counts), skipped
        self._log.append((VIEW, (self._name, key, cache_name, *rows)))
        return self._known_as(key, view)

    def _change(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        # A call that raises here does so there, before or after it changed something.
        failed: str | None = None
        try:
            return call(*arguments)
        except BaseException as error:
            failed = type(error).__name__ if isinstance(error, Exception) else ""
            raise
        finally:
            self._log.append((CHANGE, (self._name, name, arguments, failed)))

    def _new_key(self) -> Key:
        return f"{self._name} {next(self._numbers)}"

    def _known_as(self, key: Key, view: SlotInputs) -> SlotInputs:
        """The same view, whose `next_row` is noted and whose end too."""
        kind = type(view)
        if kind not in self._kinds and kind not in self._kinds.values():
            self._kinds[kind] = _followed(kind, weakref.ref(self))
        # Views are frozen, and may have no place for more: only what they are called is changed.
        object.__setattr__(view, "__class__", self._kinds.get(kind, kind))
        self._keys[id(view)] = key
        weakref.finalize(view, _drop, id(view), self._keys, self._log).atexit = False
        return view

    def _next(self, view: SlotInputs, made: SlotInputs) -> SlotInputs:
        key, before = self._new_key(), self._keys[id(view)]
        self._log.append((NEXT_VIEW, (before, key)))
        return self._known_as(key, made)


def _drop(number: int, keys: dict[int, Key], log: list[Call]) -> None:
    log.append((DROP_VIEW, (keys.pop(number),)))


def _followed(kind: type, cache: weakref.ref[MirroredCache]) -> type:
    """The class of views with a `next_row` that the cache hears of."""

    def next_row(view: Any) -> Any:
        own = cache()
        made = kind.next_row(view)  # type: ignore[attr-defined]
        return made if own is None else own._next(view, made)

    return type(kind.__name__, (kind,), {"__slots__": (), "next_row": next_row})
