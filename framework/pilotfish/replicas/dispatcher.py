"""Dispatcher: which replica has which request, and what becomes of both.

Knows: replicas that serve, are lost and come back; requests on their way. Does not know: callers,
or how a replica computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock, RLock
from time import monotonic, perf_counter
from typing import Any

import attrs

from pilotfish.config import ParallelConfig
from pilotfish.engine.outputs import FinishReason
from pilotfish.engine.request import Request
from pilotfish.errors import PilotfishError, RankError, UserError
from pilotfish.ranks.failure import Failure
from pilotfish.ranks.launch import CONNECT_S, Launcher, launcher_of
from pilotfish.ranks.messages import encode
from pilotfish.replicas.lead import POLITE_S, Lead
from pilotfish.replicas.meetings import Meetings
from pilotfish.replicas.replica import Replica
from pilotfish.replicas.router import Router
from pilotfish.replicas.tasks import ABORT, FORGET, NEWS, SUBMIT, News, Task

_LOOK_S = 0.05


@attrs.define(eq=False)
class _Sent:
    """A request that a replica has. num_tokens: of prompt and answer, at most.

    end: why it has ended, and the error, which the thread of a caller tells it; None while it goes
    on.
    """

    request: Request
    replica: int
    num_tokens: int
    end: tuple[FinishReason, str | None] | None = None


class Dispatcher:
    """The `scheduler` of an engine whose requests replicas compute.

    starts: what each lead is told first. router: of as many replicas as `parallel` has.
    names_of: the names of the pages that a request's tokens fill.

    Threads of the leads note what these say; what ends a request is done by who calls `finish`.
    Nothing of it knows who waits, and it can be called in any thread, but in no fork.
    """

    def __init__(
        self,
        parallel: ParallelConfig,
        starts: Sequence[bytes],
        router: Router,
        names_of: Callable[[Request], tuple[bytes, ...]],
    ) -> None:
        self.parallel, self.router = parallel, router
        self._starts, self._names_of = starts, names_of
        self._process = os.getpid()
        self._lock = RLock()
        self._bell = Lock()  # of C: an interrupt may come at any place
        self._sent: dict[str, _Sent] = {}
        self._load_s = 0.0
        self._warnings: list[str] = []
        self.release_failure: Exception | None = None
        self._is_closed = False
        self._meetings = Meetings(parallel, self._patience_s)
        self._launcher: Launcher | None = None
        leads = (Lead(number, start, parallel, self) for number, start in enumerate(starts))
        self.replicas = [Replica(lead) for lead in leads]

    # Beginning and end

    def begin(self) -> None:
        """Starts all replicas, and returns when they are ready.

        Raises what one cannot be started for, a UserError or a RankError. To be closed then too.
        """
        begun, launcher = monotonic(), launcher_of(self.parallel, "replica")
        _ = launcher.host  # what it connects to, it does in this thread, and until the end
        self._launcher = launcher
        for replica in self.replicas:
            replica.lead.begin()
        patience_s = None
        while not all(replica.is_ready for replica in self.replicas):
            self._raise_first_failure()
            if any(replica.is_ready for replica in self.replicas) and patience_s is None:
                self._load_s = monotonic() - begun
                patience_s = self._load_s + self._patience_s
            if patience_s is not None and monotonic() - begun > patience_s:
                raise RankError(
                    f"{self._unready()} did not answer for {self._patience_s:g} s (rank_timeout) "
                    "in loading, when another replica was ready; wanted all of them"
                )
            self._bell.acquire(timeout=_LOOK_S)
        self._load_s = monotonic() - begun

    def close(self) -> None:
        """Ends all replicas; may be called twice, also where an interrupt cut it short. In a fork
        of the process nothing is ended.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            leads = [replica.lead for replica in self.replicas]
        for lead in leads:
            lead.ask_to_close()
        until = monotonic() + POLITE_S
        for lead in leads:
            lead.close(until)
        self._meetings.close()
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.end([], 0.0)

    def abandon(self) -> None:
        """In a fork of the process: nothing of it is the fork's."""
        self._lock, self._sent = RLock(), {}

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the leads, each on its machine."""
        return tuple(replica.lead.pid for replica in self.replicas)

    # Requests

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those that have not ended, in the order in which they came."""
        return tuple(sent.request for sent in self._sent.copy().values())

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._sent)

    @property
    def num_preemptions(self) -> int:
        """How often a replica took a request's pages back."""
        return sum(replica.num_preemptions for replica in self.replicas)

    def add(self, request: Request) -> None:
        """Sends a request to a replica. Raises RankError where none serves."""
        request.restart_above = None  # what a replica has taken is taken here
        message = encode([(SUBMIT, (Task.of(request),))])
        names = self._names_of(request)
        with self._lock:
            self.check()  # once some are told to close, nobody hears of another request
            number = self.router.choose(names, self._serving())
            num_tokens = request.rules.max_total_tokens
            self._sent[request.request_id] = _Sent(request, number, num_tokens)
            self.router.begin(number, names, num_tokens)
            self.replicas[number].lead.tell(message)
            self._tell_sharing(number, self._meetings.join())

    def abort(self, requests: Iterable[Request]) -> None:
        """Ends requests, whatever they have."""
        for request in requests:
            with self._lock:
                _finish(request, "abort")
                self._drop(request)

    def wait(self, patience_s: float) -> None:
        """Until there is news, or for some time."""
        self.check()
        self._bell.acquire(timeout=patience_s)

    def finish(self) -> list[Request]:
        """Ends the requests that have ended where they were computed."""
        ended = []
        for sent in list(self._sent.values()):
            if sent.end is not None:
                with self._lock:
                    if not sent.request.is_finished:
                        sent.request.finish(*sent.end)
                    self._drop(sent.request)
                ended.append(sent.request)
        return ended

    def settle(self) -> list[Request]:
        """After an exception anywhere in a call: ends anew what was ended in part. Returns those
        that have ended.
        """
        ended = []
        with self._lock:
            for sent in list(self._sent.values()):
                request = sent.request
                if sent.end is not None:
                    _finish(request, *sent.end)
                if request.is_finished:
                    self._drop(request)
                    ended.append(request)
            self.router.recount((sent.replica, sent.num_tokens) for sent in self._sent.values())
            for group in self._groups():
                if self._is_whole(group.start):  # some may not have heard of a request
                    self._tell_sharing(group.start, self._meetings.join())
        return ended

    def forget_cached_prefixes(self) -> None:
        """Empties the prefix cache of every replica."""
        self.check()
        with self._lock:
            for number, replica in enumerate(self.replicas):
                if replica.is_ready:
                    self.router.forget_pages(number)
                    replica.lead.tell(encode([(FORGET, ())]))

    def take_warning(self) -> str | None:
        """What a user should know, each once; None when nothing is left."""
        with self._lock:
            return self._warnings.pop(0) if self._warnings else None

    def check(self) -> None:
        """Raises PilotfishError where it is closed, or another process's."""
        if self._process != os.getpid():
            raise PilotfishError(
                f"the replicas of this model belong to process {self._process} and this is a fork "
                "of it; wanted a model made in this process"
            )
        if self._is_closed:
            raise PilotfishError("the replicas of this model are closed; make another one")

    # What leads say, in their threads

    def on_ready(self, lead: Lead, warnings: Sequence[str]) -> None:
        """It gets requests from now on. warnings: of all replicas the same."""
        with self._lock:
            if not any(replica.is_ready for replica in self.replicas):
                self._warnings += warnings
            replica = self.replicas[lead.number]
            replica.is_ready, replica.failure = True, None
            self._meet(lead.number)
            self._ring()

    def on_message(self, lead: Lead, name: str, arguments: tuple[Any, ...]) -> None:
        """Notes what requests got; those that are gone meanwhile get nothing."""
        with self._lock:
            if name == NEWS:
                news, num_preemptions = arguments
                self.replicas[lead.number].count_preemptions(num_preemptions)
                for one in news:
                    sent = self._sent.get(one.request_id)
                    if sent is not None and sent.end is None and not sent.request.is_finished:
                        self._take(sent, one)
            else:
                kind, text = arguments
                self.release_failure = type(kind, (Exception,), {})(text)
            self._ring()

    def on_lost(self, lead: Lead, failure: Failure, error: BaseException) -> None:
        """Its requests have ended with an error. Replicas that share experts with it are given up;
        the others know nothing of it.
        """
        with self._lock:
            replica = self.replicas[lead.number]
            replica.lose(failure, error)
            if replica.comes_back:  # those that share with it are as old: only new ones meet
                self._give_up_sharing(lead.number)
            self.router.forget_pages(lead.number)
            said = f"{failure.what}; its requests have ended: ask again, and another one answers"
            for sent in self._sent.values():
                if sent.replica == lead.number and sent.end is None:
                    sent.end = "error", said
            then = "it is started again" if replica.comes_back else "it stays lost"
            self._warnings.append(f"{failure.what}; {then}, and requests go to the others")
            self._ring()

    def on_gone(self, lead: Lead) -> None:
        """One that had been ready is started again, when there is room."""
        with self._lock:
            replica = self.replicas[lead.number]
            if self._is_closed or not replica.comes_back:
                return
            load_s, start = 2 * self._load_s + self._patience_s, self._starts[lead.number]
            replica.lead = Lead(lead.number, start, self.parallel, self, load_s=load_s)
            replica.lead.begin()

    def is_waiting_for(self, lead: Lead) -> bool:
        """Whether it has requests to compute."""
        with self._lock:
            mine = (sent for sent in self._sent.values() if sent.replica == lead.number)
            return any(sent.end is None for sent in mine)

    # Parts

    @property
    def _patience_s(self) -> float:
        return max(self.parallel.rank_timeout, CONNECT_S)

    def _raise_first_failure(self) -> None:
        """While replicas load."""
        for replica in self.replicas:
            if isinstance(replica.error, UserError):
                raise replica.error
            if replica.failure is not None:
                raise replica.failure.error()

    def _unready(self) -> str:
        numbers = (number for number, one in enumerate(self.replicas) if not one.is_ready)
        return f"replica {' and '.join(map(str, numbers))} of {self.parallel.num_replicas}"

    def _take(self, sent: _Sent, news: News) -> None:
        """What a pass gave a request; the text is made here."""
        request = sent.request
        request.num_computed = news.num_computed
        request.started = request.started or perf_counter() - news.waited_s
        request.prompt_logprobs += news.prompt_records
        if news.kept_logits is not None:
            request.keep_logits(news.kept_logits)
        reason, error = news.finish_reason, news.error
        if news.tokens:
            try:
                found = request.accept(news.tokens, news.logprobs, news.drafted, news.num_accepted)
                reason = found or reason
            except Exception as failure:
                reason, error = "error", f"{type(failure).__name__}: {failure}"
                with suppress(Exception):  # it may fail of the same
                    request.settle()
        if reason is not None:
            sent.end = reason, error

    def _drop(self, request: Request) -> None:
        """Nothing is to be known of it any more, here and there."""
        sent = self._sent.pop(request.request_id, None)
        if sent is not None:
            has_failed = sent.end is not None and sent.end[0] == "error"
            names = () if has_failed else self._names_of(request)
            self.router.end(sent.replica, names, sent.num_tokens)
            replica = self.replicas[sent.replica]
            if replica.is_ready:
                replica.lead.tell(encode([(ABORT, ((request.request_id,),))]))

    def _serving(self) -> list[int]:
        """Numbers of the replicas that are ready. Raises RankError for none."""
        found = [number for number in range(len(self.replicas)) if self._is_whole(number)]
        if not found:
            lost = "; ".join(one.failure.what for one in self.replicas if one.failure is not None)
            if any(map(self._comes_back, self._groups())):
                raise RankError(f"no replica serves now ({lost}); being started again: ask later")
            raise RankError(f"no replica is left ({lost}); wanted one: make another model")
        return found

    # Replicas that share experts

    def _is_whole(self, number: int) -> bool:
        """Whether it has all that its passes need."""
        return all(self.replicas[one].is_ready for one in self._meetings.sharing(number))

    def _groups(self) -> set[range]:
        """The numbers of those that share experts; of each alone where none do."""
        return {self._meetings.sharing(number) for number in range(len(self.replicas))}

    def _comes_back(self, group: range) -> bool:
        ones = [self.replicas[number] for number in group]
        return all(one.is_ready or one.comes_back for one in ones)

    def _give_up_sharing(self, number: int) -> None:
        for one in self._meetings.sharing(number):
            if self.replicas[one].is_ready:
                self.replicas[one].is_ready = False
                self.replicas[one].lead.give_up()

    def _meet(self, number: int) -> None:
        if self._is_whole(number) and self._launcher is not None:
            self._tell_sharing(number, self._meetings.meet(number, self._launcher.host))

    def _tell_sharing(self, number: int, message: bytes | None) -> None:
        if message is not None:
            for one in self._meetings.sharing(number):
                self.replicas[one].lead.tell(message)

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it rang already
            self._bell.release()


def _finish(request: Request, reason: FinishReason, error: str | None = None) -> None:
    """Ends a request, unless it has ended; one that was ended in part, anew. An answer that was
    whole has its own end.
    """
    if not request.is_finished:
        request.settle()
    if not request.is_finished:
        request.finish(reason, error)
