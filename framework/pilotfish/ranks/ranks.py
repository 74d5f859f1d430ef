"""Ranks: the driver's handle on the other ranks of its model.

Knows: how they start, are told, fail and end. Does not know: models, or what the calls do.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import repeat
from time import monotonic
from typing import Any, Self, TypeVar

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import PilotfishError, RankError
from pilotfish.parallel.group import Groups
from pilotfish.ranks.channel import Channel, Listener
from pilotfish.ranks.failure import Failure, cause_of
from pilotfish.ranks.helper import Helper, Job
from pilotfish.ranks.launch import CONNECT_S, Launcher, Worker, launcher_of, threads_of_rank
from pilotfish.ranks.messages import Call, Key, decode, encode
from pilotfish.ranks.start_up import (
    SERVE,
    StartUp,
    connect,
    open_store,
    transports_of,
)
from pilotfish.ranks.worker import CLOSE, READY

T = TypeVar("T")

_CLOSED = "the ranks of this model are closed; make another one"
_POLITE_S = 1.5
"""How long workers that were told to close may take."""


@attrs.define(eq=False)
class _Held:
    """What must be let go of, whatever becomes of the handle."""

    process: int
    launcher: Launcher
    workers: list[Worker]
    listener: Listener
    helper: Helper
    groups: Groups
    is_ended: bool = False

    def end(self, *, politely: bool) -> None:
        """Ends all. May be called twice. In a fork of the process nothing is ended."""
        if self.is_ended:
            return
        if self.process != os.getpid():
            for transport in transports_of(self.groups):
                transport.abandon()
            return
        self.is_ended = True
        self.listener.close()
        is_told = politely and self.helper.is_idle and all(map(_is_told_to_close, self.workers))
        for transport in transports_of(self.groups):
            transport.close()
        self.launcher.end(self.workers, _POLITE_S if is_told else 0.0)


def _is_told_to_close(worker: Worker) -> bool:
    try:
        if worker.channel is not None:
            worker.channel.send(CLOSE)
    except OSError:
        return False
    return worker.channel is not None


class Ranks:
    """Starts the workers of `parallel`; their processes begin at once, and wait for `start`.

    launcher: what starts them; None: what `parallel` says.
    groups: this process's, rank 0, None for new ones; connected once `wait_ready` has returned.
    log: calls that workers make in front of the next one that they are told.
    keys: what workers know of this process's objects, by `id`; see `messages.encode`.

    Every call may raise RankError, which names the rank that failed. From then on all of them do,
    at once, and no process is left.
    """

    def __init__(
        self,
        parallel: ParallelConfig,
        groups: Groups | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        launcher = launcher or launcher_of(parallel)
        self.parallel = parallel
        self.groups = groups or Groups.of_rank(0, parallel)
        self.log: list[Call] = []
        self.keys: dict[int, Key] = {}
        self._failure: Failure | None = None
        self._starting: Job | None = None
        num_threads = threads_of_rank(parallel)
        listener, helper = Listener(launcher.host), Helper(num_threads)
        self._held = _Held(os.getpid(), launcher, [], listener, helper, self.groups)
        weakref.finalize(self, self._held.helper.stop)  # not sooner: a caller may wait for it
        self._end = weakref.finalize(self, self._held.end, politely=True)
        try:
            for rank in range(1, parallel.num_ranks):
                self._held.workers.append(launcher.launch(rank, listener, num_threads))
        except BaseException:
            self._held.end(politely=False)
            raise

    def start(
        self,
        options: Mapping[str, Any] | None = None,
        memory_plan: Any = None,
        *,
        serve: str = SERVE,
    ) -> None:
        """Tells the workers what to make, and returns while they do; see `StartUp`.

        Raises ConfigError for an option that cannot be sent.
        """
        self._check()
        host = self._held.launcher.host
        store = open_store(host, max(self.parallel.rank_timeout, CONNECT_S))
        messages = [
            StartUp(
                parallel=self.parallel,
                rank=self.groups.number + rank,
                store=(host, store.port),
                serve=serve,
                options=options or {},
                memory_plan=memory_plan,
            ).to_bytes()
            for rank in range(1, self.parallel.num_ranks)
        ]

        def meet() -> None:
            self._accept()
            self._tell(messages)
            connect(self.groups, store, self.parallel, host)

        self._starting = self._held.helper.begin(partial(self._guarded, meet, "starting"))

    def wait_ready(self) -> None:
        """Waits until every worker has loaded. To be called when this process has: a worker that
        takes `rank_timeout` longer is given up.
        """
        if self._starting is not None:
            starting, self._starting = self._starting, None
            starting.wait()
        self._check()
        self._guarded(self._hear_ready, "loading")

    def call(self, name: str, arguments: tuple[Any, ...], here: Callable[[], T]) -> T:
        """Tells every worker to make a call, and does this rank's part of it.

        It is done whole, also when this thread is interrupted meanwhile.
        """
        self._check()

        def whole() -> T:  # where no interrupt comes between what is noted and what is told
            noted = [*self.log]
            message = encode([*noted, (name, arguments)], self.keys)
            del self.log[: len(noted)]
            return self._guarded(partial(told, message), name)

        def told(message: bytes) -> T:
            self._tell(repeat(message))
            return here()

        return self._held.helper.run(whole)

    def failure(self) -> RankError | None:
        """What ended the ranks; None while they live."""
        return None if self._failure is None else self._failure.error()

    def close(self) -> None:
        """Ends the workers, within 3 seconds or so. May be called twice."""
        self._end()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of ranks 1 and up."""
        return tuple(worker.pid for worker in self._held.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Parts

    def _check(self) -> None:
        """Raises where there are no ranks to be told."""
        if self._failure is not None:
            raise self._failure.error()
        if self._held.is_ended:
            raise PilotfishError(_CLOSED)
        if self._held.process != os.getpid():
            raise PilotfishError(
                f"the ranks of this model belong to process {self._held.process} and this is a "
                "fork of it; wanted a model made in this process"
            )

    def _guarded(self, work: Callable[[], T], name: str) -> T:
        """What the work raises ends the ranks."""
        try:
            return work()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._held.is_ended:  # closed meanwhile: what it waited for is gone
                raise PilotfishError(_CLOSED) from error
            self._failure = cause_of(error, name, self._held.workers, self.parallel)
            self._held.end(politely=False)
            raise self._failure.error() from error

    def _tell(self, messages: Iterable[bytes]) -> None:
        """messages: one for each worker."""
        for worker, message in zip(self._held.workers, messages, strict=False):
            assert worker.channel is not None
            worker.channel.send(message)

    def _accept(self) -> None:
        deadline = monotonic() + max(self.parallel.rank_timeout, CONNECT_S)
        missing = {one.rank: one for one in self._held.workers if one.channel is None}
        while missing:
            if self._held.is_ended or any(one.how_it_ended() for one in missing.values()):
                raise ConnectionError("a process ended before it began")
            if monotonic() > deadline:
                raise TimeoutError("a process did not begin")
            found = self._held.listener.accept(0.1, self.parallel.rank_timeout)
            if found is not None and found[0] in missing:
                missing.pop(found[0]).channel = found[1]
        self._held.listener.close()

    def _hear_ready(self) -> None:
        deadline = monotonic() + self.parallel.rank_timeout
        waiting = {one.channel: one for one in self._held.workers if one.channel is not None}
        while waiting:
            for channel in Channel.ready(waiting, max(0.0, deadline - monotonic())):
                [(said, arguments)] = decode(channel.recv())
                worker = waiting.pop(channel)
                if said != READY:
                    worker.last_words = arguments()
                    raise ConnectionError(f"rank {worker.rank} failed")
            if waiting and monotonic() > deadline:
                raise TimeoutError("a rank is not ready")
