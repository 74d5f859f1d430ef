"""ReplicaEngine: several replicas behind the interface of one engine.

Knows: who may call it when, as `Engine` does. Does not know: which replica computes what.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pilotfish.engine.engine import WholeCalls
from pilotfish.ranks.start_up import StartUp
from pilotfish.replicas.dispatcher import Dispatcher
from pilotfish.replicas.router import Router
from pilotfish.state.prefix import PrefixIndex
from pilotfish.warn import warn_caller

if TYPE_CHECKING:
    from pilotfish.engine.request import Request
    from pilotfish.loading.prepared import Prepared

_SERVER = "pilotfish.replicas.server:Server"
_WAIT_S = 0.01
"""How long a step waits for news, and whoever wants a turn between two steps with it."""


class ReplicaEngine(WholeCalls):
    """As `Engine`; a step waits for news of any replica, a little while.

    scheduler: what has the requests.

    After any exception, an interrupt included, every request goes on where it is computed.
    """

    scheduler: Dispatcher

    def __init__(self, scheduler: Dispatcher) -> None:
        super().__init__(scheduler)
        self._end = weakref.finalize(self, scheduler.close)

    def add(self, request: Request) -> None:
        """Sends an admitted request to a replica. Raises RankError where none is left."""
        self._whole(partial(self.scheduler.add, request))

    def step(self) -> list[Request]:
        """Waits for news; returns the requests that ended since the last call that returned."""
        self._whole(self._step)
        ended, self._ended = self._ended, []
        self.warn()
        return ended

    def forget_cached_prefixes(self) -> None:
        """Empties the prefix cache of every replica."""
        self._whole(self.scheduler.forget_cached_prefixes)

    def begin_in_fork(self, is_torn: bool) -> None:
        """A fork has no replicas: whatever is asked of them there is refused."""
        del is_torn
        self.scheduler.abandon()
        self.is_busy, self._is_whole = False, True

    def warn(self) -> None:
        """Says what a user should know of replicas, once."""
        while message := self.scheduler.take_warning():
            warn_caller(message)

    def close(self) -> None:
        """Ends the replicas. May be called twice."""
        self.scheduler.close()

    def _step(self) -> None:
        self.scheduler.wait(_WAIT_S)
        self._ended += self.scheduler.finish()

    def _restart(self) -> None:
        self._ended += self.scheduler.settle()
        self._let_leavers_go()
        self._is_whole = True

    def _abort(self, requests: Iterable[Request]) -> None:
        self.scheduler.abort(requests)


def load_replicas(prepared: Prepared, options: Mapping[str, Any]) -> ReplicaEngine:
    """Starts all replicas, to be closed; see `engine.loaded.load`."""
    plan, parallel = prepared.memory_plan, prepared.pipeline_config.parallel
    starts = [
        StartUp(
            parallel=parallel,
            rank=number * parallel.num_ranks,
            serve=_SERVER,
            options=options,
            memory_plan=plan,
        ).to_bytes()
        for number in range(parallel.num_replicas)
    ]
    router = Router(
        parallel.num_replicas, num_pages=plan.num_pages, max_batch_size=plan.max_batch_size
    )
    dispatcher = Dispatcher(parallel, starts, router, _names_of(prepared))
    engine = ReplicaEngine(dispatcher)
    try:
        dispatcher.begin()
        engine.warn()
    except BaseException:
        engine.close()
        raise
    return engine


def _names_of(prepared: Prepared) -> Callable[[Request], tuple[bytes, ...]]:
    """What names the pages that a request's tokens fill, as a replica does."""
    if not prepared.pipeline_config.cache.prefix_caching:
        return lambda request: ()
    lookahead = 0 if prepared.draft is None else prepared.draft.config.lookahead
    index = PrefixIndex(prepared.memory_plan.page_size_tokens, lookahead)

    def names(request: Request) -> tuple[bytes, ...]:
        return tuple(name for _, name in index.names(request.prefix_keys, request.salt))

    return names
