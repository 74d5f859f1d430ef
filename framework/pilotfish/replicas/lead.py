"""Lead: one process that leads a replica, to the process that feeds it.

Knows: how it is started, told, heard, found lost and ended. Does not know: requests.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, Protocol

import attrs

from pilotfish import errors
from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import RankError, UserError
from pilotfish.ranks.channel import Channel, Listener
from pilotfish.ranks.failure import Failure, cause_of, wanted_in
from pilotfish.ranks.launch import (
    CONNECT_S,
    Launcher,
    NoRoomError,
    Worker,
    launcher_of,
    threads_of_rank,
)
from pilotfish.ranks.messages import decode
from pilotfish.ranks.worker import CLOSE, ERROR, LAUNCH, READY
from pilotfish.replicas.tasks import CLOSED

_LOOK_S = 0.5
"""How often a lead is found silent or not."""
_GRACE_S = 10.0
"""How much longer than its own ranks it may be silent: it names the one that is to blame."""
POLITE_S = 6.0
"""How long those that were told to close may take, with their ranks."""


class _GivenUp(ConnectionError):
    """A lead was given up; see `Lead.give_up`."""


class Listening(Protocol):
    """Who has leads. Called in the threads of these."""

    def on_ready(self, lead: Lead, warnings: Sequence[str]) -> None:
        """It can be told what to do. warnings: of its loading."""
        ...

    def on_message(self, lead: Lead, name: str, arguments: tuple[Any, ...]) -> None:
        """It said something."""
        ...

    def on_lost(self, lead: Lead, failure: Failure, error: BaseException) -> None:
        """It is lost, and will be ended."""
        ...

    def on_gone(self, lead: Lead) -> None:
        """Nothing of it is left."""
        ...

    def is_waiting_for(self, lead: Lead) -> bool:
        """Whether it should say something."""
        ...


class Lead:
    """number: of its replica. start: what it is told first. parallel: of all.

    It is begun in a thread of its own, that then hears it; another one tells it, so that no caller
    waits for a process that is stuck, or is interrupted in the midst of a message.

    load_s: how long it may take to be ready, once there is room for it, which there may not be now;
    None for as long as it takes, where there has to be room. has_closed: whether it said at last
    that it has.
    """

    def __init__(
        self,
        number: int,
        start: bytes,
        parallel: ParallelConfig,
        listening: Listening,
        *,
        load_s: float | None = None,
    ) -> None:
        self.number = number
        self._start, self._parallel, self._listening = start, parallel, listening
        self._load_s = load_s
        self._launcher: Launcher | None = None
        self._worker: Worker | None = None
        self._listener: Listener | None = None
        self._doing = "starting"
        self._limit_s = max(parallel.rank_timeout, CONNECT_S)  # of what it is doing
        self._outgoing = SimpleQueue[bytes | None]()
        self._is_closed = self.has_closed = self._is_ended = self._is_given_up = False
        self._end_lock = threading.RLock()  # a finalizer may come in a thread that has it
        self._is_over = threading.Event()
        self._is_over.set()

    def begin(self) -> None:
        """Starts its process, and returns at once."""
        name = f"pilotfish replica {self.number}"
        self._is_over.clear()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def tell(self, message: bytes) -> None:
        """Does not wait."""
        self._outgoing.put(message)

    def give_up(self) -> None:
        """It is lost soon, though nothing may be wrong with it. Does not wait."""
        self._is_given_up = True

    def ask_to_close(self) -> None:
        """Does not wait; `close` does."""
        self._is_closed = True
        if self._listener is not None:
            self._listener.close()
        self._outgoing.put(CLOSE)
        self._outgoing.put(None)

    def close(self, until: float) -> None:
        """Ends its process, politely where it was asked before. May be called twice.

        until: when it is waited for no longer, by `monotonic`.
        """
        self._is_closed = True
        try:
            self._is_over.wait(max(0.0, until - monotonic()))
        finally:
            self._end(POLITE_S if self.has_closed else 0.0)

    @property
    def was_ready(self) -> bool:
        """Whether it was ready once, whatever became of it."""
        return self._doing == "serving"

    @property
    def pid(self) -> int:
        """Of its process, on its machine; 0 before it has one."""
        return 0 if self._worker is None else self._worker.pid

    # In its own threads

    def _run(self) -> None:
        try:
            self._hear(self._meet())
        except BaseException as error:
            if not self._is_closed:
                self._listening.on_lost(self, self._failure(error), error)
        self._outgoing.put(None)
        self._is_over.set()
        if not self.has_closed:
            self._end(0.0)
        self._listening.on_gone(self)

    def _meet(self) -> Channel:
        """Starts the process, and waits until it is ready."""
        worker, listener = self._launch()
        try:
            channel = worker.channel = self._accept(worker, listener)
        finally:
            listener.close()
        channel.send(self._start)
        self._doing, self._limit_s = "loading", self._load_s or self._parallel.rank_timeout
        warnings = self._hear_ready(channel)
        self._doing = "serving"
        told, name = (channel, self._outgoing), f"pilotfish to replica {self.number}"
        threading.Thread(target=_write, args=told, name=name, daemon=True).start()
        self._listening.on_ready(self, warnings)
        return channel

    def _launch(self) -> tuple[Worker, Listener]:
        waits_for_room = self._load_s is not None
        while True:
            launcher = launcher_of(self._parallel, "replica")
            listener = self._listener = Listener(launcher.host)
            try:
                worker = launcher.launch(0, listener, threads_of_rank(self._parallel))
            except BaseException as error:
                listener.close()
                launcher.end([], 0.0)
                if isinstance(error, NoRoomError) and waits_for_room and not self._is_closed:
                    continue
                raise
            self._launcher, self._worker = launcher, worker
            return worker, listener

    def _accept(self, worker: Worker, listener: Listener) -> Channel:
        timeout_s, deadline = self._parallel.rank_timeout, monotonic() + self._limit_s
        if worker.channel is not None:
            return worker.channel
        while True:
            found = listener.accept(0.1, timeout_s)
            if found is not None:
                return found[1]
            if self._is_closed or worker.how_it_ended():
                raise ConnectionError("the process ended before it began")
            if monotonic() > deadline:
                raise TimeoutError("the process did not begin")

    def _hear_ready(self, channel: Channel) -> Sequence[str]:
        waited_s = 0.0
        while True:
            if Channel.ready([channel], _LOOK_S):
                [(said, arguments)] = self._recv(channel)
                if said == READY:
                    found: Sequence[str] = arguments[0]
                    return found
                assert said == LAUNCH, said
                assert self._launcher is not None
                self._launcher.pass_on(*arguments)
            waited_s += _LOOK_S
            if self._is_closed or (self._load_s is not None and waited_s > self._load_s):
                raise TimeoutError("it is not ready")

    def _hear(self, channel: Channel) -> None:
        """Until it has closed, is gone, is given up, or is silent for too long. Time that this
        process is stopped for, with all others of its terminal, does not count.
        """
        silent_s, parallel = 0.0, self._parallel
        grace_s = _GRACE_S if parallel.num_ranks > 1 else 0.0
        self._limit_s = parallel.rank_timeout + grace_s
        while True:
            has_said = Channel.ready([channel], _LOOK_S)
            if has_said:
                silent_s = 0.0
                for said, arguments in self._recv(channel):
                    if said == CLOSED:
                        self.has_closed = True
                        return
                    self._listening.on_message(self, said, arguments)
            elif self._listening.is_waiting_for(self):
                silent_s += _LOOK_S
                if silent_s > self._limit_s:
                    raise TimeoutError("it is silent")
            else:
                silent_s = 0.0
            if self._is_given_up and not has_said:
                raise _GivenUp

    def _recv(self, channel: Channel) -> list[tuple[str, tuple[Any, ...]]]:
        """One message. Raises ConnectionError where it tells of its end, or the UserError that it
        was.
        """
        said = [(name, arguments()) for name, arguments in decode(channel.recv())]
        if said[0][0] == ERROR:
            assert self._worker is not None
            words = self._worker.last_words = said[0][1]
            kind = getattr(errors, words[0], None)
            if isinstance(kind, type) and issubclass(kind, UserError):
                raise kind(words[1])
            raise ConnectionError("it has said why")
        return said

    def _failure(self, error: BaseException) -> Failure:
        """Which rank of the replica is to blame."""
        parallel, worker = self._parallel, self._worker
        of_all = f"replica {self.number} of {parallel.num_replicas}"
        words = None if worker is None else worker.last_words
        if worker is None:
            return Failure(f"{of_all} could not be started: {error}")
        if words is not None and words[0] == RankError.__name__:
            what, has_wanted, wanted = words[1].partition("; wanted")
            failure = Failure(f"{of_all}: {what}", words[2])
            return attrs.evolve(failure, wanted=f"wanted{wanted}") if has_wanted else failure
        if words is not None and words[3] and parallel.num_expert_ranks > parallel.num_ranks:
            return Failure(
                f"{of_all} lost ranks of another one, which has experts of its", words[2]
            )
        if isinstance(error, TimeoutError):
            is_it = self._limit_s == parallel.rank_timeout
            of_what = "rank_timeout" if is_it else f"rank_timeout is {parallel.rank_timeout:g} s"
            said = f"did not answer for {self._limit_s:g} s ({of_what}) in {self._doing}"
            what = f"{of_all}: rank 0 of {parallel.num_ranks} {said}"
            return Failure(what, wanted=wanted_in(self._doing))
        if isinstance(error, _GivenUp):
            return Failure(f"{of_all} was given up with one that has experts of its")
        found = cause_of(error, self._doing, [worker], parallel)
        return attrs.evolve(found, what=f"{of_all}: {found.what}")

    def _end(self, wait_s: float) -> None:
        with self._end_lock:
            if self._worker is None or self._launcher is None or self._is_ended:
                return
            self._is_ended = True
            self._launcher.end([self._worker], wait_s)


def _write(channel: Channel, messages: SimpleQueue[bytes | None]) -> None:
    """Until there are no more, or nobody hears: whoever hears the lead finds it gone."""
    with suppress(OSError):
        while (message := messages.get()) is not None:
            channel.send(message)
