"""Bugs of caches without pages: what they hold, keep, give back and count."""

from __future__ import annotations

from typing import Any

import attrs

from pilotfish_lfm2.cache import ConvStateCache
from support.planted_bugs import BUGS, CONV, Bug, Patch, bug

CONTRACT = "slot caches keep their contract"
CACHE = "pilotfish_lfm2.cache:ConvStateCache"


@bug(0, "a cache without pages keeps all when it is cleared", CONTRACT, f"{CACHE}.clear", CONV)
def _(real: Any) -> Any:
    return lambda self: None


@bug(0, "a cache without pages forgets no page", CONTRACT, f"{CACHE}.forget", CONV)
def _(real: Any) -> Any:
    return lambda self, page: None


@bug(0, "rows of an earlier pass of the step are not skipped", CONTRACT, f"{CACHE}.inputs", CONV)
def _(real: Any) -> Any:
    return lambda self, cache_name, names, counts, skip=None: real(self, cache_name, names, counts)


@bug(0, "no pass is given a view of a cache without pages", CONTRACT, f"{CACHE}.inputs", CONV)
def _(real: Any) -> Any:
    return lambda self, *args: None


def _snapshots_are_views(patch: Patch) -> None:
    cache: Any = ConvStateCache
    keep, restore = cache.keep, cache.restore

    def kept(self: Any, request_id: str, page: int, num_tokens: int) -> None:
        keep(self, request_id, page, num_tokens)
        request = self._request(request_id)
        begin = num_tokens - request.num_committed + 1
        views = vars(self).setdefault("views", {})
        views[page] = self._columns(request, begin, self.width - 1)

    def restored(self: Any, request_id: str, page: int, num_tokens: int) -> None:
        self.kept[:, page] = self.views[page]
        restore(self, request_id, page, num_tokens)

    patch.setattr(cache, "keep", kept)
    patch.setattr(cache, "restore", restored)


BUGS.append(
    Bug(
        number=0,
        what="a snapshot at a page's end is the slot itself",
        promise=CONTRACT,
        plant=_snapshots_are_views,
        subject=CONV,
    )
)


CONFIG = "pilotfish_lfm2.config:LFM2Config"


def _spec_lies(**lies: Any) -> Any:
    """What makes a config whose slot spec says something else, of a model that keeps its word."""

    def make(real: Any) -> Any:
        def specs(self: Any) -> Any:
            paged, *slots = real(self)
            return (paged, *(attrs.evolve(slot, **lies) for slot in slots))

        return specs

    return make


def _lie(what: str, **lies: Any) -> None:
    bug(0, what, CONTRACT, f"{CONFIG}.get_state_specs", CONV)(_spec_lies(**lies))


_lie("a spec says that a slot is one number", slot_shape=(1,))
_lie("a spec says that a snapshot is one number", boundary_shape=(1,))
_lie("a spec says that rows take no memory", row_shape=None)
_lie("a spec says that it keeps no snapshots, and snapshots are kept", boundary_shape=None)


@bug(0, "no snapshot is ever found", CONTRACT, f"{CACHE}.restorable", CONV)
def _(real: Any) -> Any:
    return lambda self, page: False


@bug(0, "a page is given back as if it were kept", CONTRACT, f"{CACHE}.restorable", CONV)
def _(real: Any) -> Any:
    return lambda self, page: True


@bug(0, "a released request stays", CONTRACT, f"{CACHE}.release", CONV)
def _(real: Any) -> Any:
    def release(self: Any, request_id: str) -> None:
        vars(self).setdefault("gone", []).append(self._request(request_id))
        real(self, request_id)

    return release


@bug(0, "rows that nobody committed stay when a request goes", CONTRACT, f"{CACHE}.release", CONV)
def _(real: Any) -> Any:
    def release(self: Any, request_id: str) -> None:
        strip = self._request(request_id).strip
        if strip is not None:
            vars(self).setdefault("strips", {})[request_id] = strip
        real(self, request_id)

    return release


@bug(0, "a second claim raises nothing", CONTRACT, f"{CACHE}.claim", CONV)
def _(real: Any) -> Any:
    def claim(self: Any, request_id: str) -> None:
        if request_id not in self._requests:
            real(self, request_id)

    return claim


@bug(0, "a release of no request raises nothing", CONTRACT, f"{CACHE}.release", CONV)
def _(real: Any) -> Any:
    def release(self: Any, request_id: str) -> None:
        if request_id in self._requests:
            real(self, request_id)

    return release


@bug(0, "a release of no request raises KeyError", CONTRACT, f"{CACHE}.release", CONV)
def _(real: Any) -> Any:
    def release(self: Any, request_id: str) -> None:
        self._requests[request_id]
        real(self, request_id)

    return release


@bug(0, "restored rows are not counted", CONTRACT, f"{CACHE}.restore", CONV)
def _(real: Any) -> Any:
    def restore(self: Any, request_id: str, page: int, num_tokens: int) -> None:
        real(self, request_id, page, num_tokens)
        self._request(request_id).num_committed = 0

    return restore


@bug(0, "a boundary that has gone by is kept as what is there", CONTRACT, f"{CACHE}.keep", CONV)
def _(real: Any) -> Any:
    def keep(self: Any, request_id: str, page: int, num_tokens: int) -> None:
        real(self, request_id, page, max(num_tokens, self.num_committed(request_id)))

    return keep
