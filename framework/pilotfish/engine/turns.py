"""Turns: one engine for several threads, signal handlers and finalizers.

Knows: who runs the engine, how streams end, and how all ends. Does not know: prompts or outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock, RLock, get_ident
from typing import Any, TypeVar

import torch

from pilotfish.engine.engine import Engine
from pilotfish.engine.outputs import Delta
from pilotfish.engine.progress import Progress
from pilotfish.engine.request import Caller, Request
from pilotfish.errors import PilotfishError
from pilotfish.platform.heap import return_freed_memory
from pilotfish.warn import warn_caller

T = TypeVar("T")


_HANDED_OVER_S = 0.01
"""How long a thread that would go on at once waits for others to take their turn."""
_NAP_S = 0.05
"""How long a thread sleeps before it looks for itself."""


class Turns:
    """Lets one thread run the engine at a time, in the process that made it, until it is closed.

    A turn is one pass, or less. Of the threads that wait for answers one drives: it takes turn
    after turn until it has its own, and each pass computes the requests of all. The others sleep,
    since OpenMP has other threads for every thread that asks; when the driver has what it wants,
    the next one drives. Threads that want a turn for more than a pass get it between two passes.

    A signal handler or a finalizer may run in the midst of a pass of its own thread. What it lets
    go of, or closes, waits for the end of that pass; what it asks to run raises StateError.

    may_fork: whether a pass of several threads runs in a fork of the process too; torch's waits
        there for ever. at_end: called when the engine is let go of.
    """

    def __init__(
        self, engine: Engine, *, may_fork: bool, at_end: Callable[[], object] | None = None
    ) -> None:
        self._engine: Engine | None = engine
        self._at_end = at_end
        self._lock = RLock()
        self._holder: int | None = None
        self._last_holder: int | None = None
        self._waiting: set[int] = set()
        # Locks of C for what threads wait for, as a handler or a finalizer may come at any place.
        self._baton = Lock()
        self._driver: int | None = None
        self._sleepers: dict[Any, Callable[[], bool]] = {}
        self._is_closing = False
        self._may_fork = may_fork
        self._maker = self._process = os.getpid()

    @property
    def engine(self) -> Engine:
        """The engine. Raises as `check_open`."""
        engine = self._engine  # first: another thread may close behind the check
        self.check_open()
        assert engine is not None
        return engine

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._engine is None or self._is_closing

    def check_open(self) -> None:
        """Raises PilotfishError where the engine is closed, or another process's."""
        if self.is_closed:
            raise PilotfishError("this LLM is closed; make another one")
        self._check_process()

    def _check_process(self) -> None:
        is_fork = not self._may_fork and self._maker != os.getpid()
        if is_fork and torch.get_num_threads() > 1:
            raise PilotfishError(
                f"this LLM was made by process {self._maker} and this is a fork of it, which "
                "lacks the threads of OpenMP, so that a pass would never end; wanted an LLM made "
                "in this process, started by multiprocessing's 'spawn' or 'forkserver'"
            )

    def take(self, work: Callable[[], T]) -> T:
        """Does the work while no other thread has the turn; then closes, if that is asked."""
        if self._process != os.getpid():
            self._begin_in_fork()
        me = get_ident()
        if self._last_holder == me != self._holder:
            self._let_others()
        self._waiting.add(me)
        with self._lock:
            self._waiting.discard(me)
            with suppress(RuntimeError):  # nobody waits for it
                self._baton.release()
            before, self._holder, self._last_holder = self._holder, me, me
            try:
                made = work()
                _warn_of_release(self._engine)
                return made
            finally:
                self._holder = before
                self._wake(all_of_them=False)
                if self._is_closing:
                    self._end()

    def _let_others(self) -> None:
        """Waits until a thread that waits for a turn has it; a lock alone gives it to anybody."""
        if self._waiting:
            self._baton.acquire(blocking=False)
            if not self._baton.acquire(timeout=_HANDED_OVER_S):
                self._waiting.clear()  # of those that an interrupt kept from waiting

    def _begin_in_fork(self) -> None:
        """A fork has none of its parent's other threads: nobody ends what one of them began."""
        is_torn = self._holder not in {None, get_ident()}
        if is_torn:
            self._lock, self._holder = RLock(), None
        self._waiting, self._baton = set(), Lock()
        self._driver, self._sleepers = None, {}
        if self._engine is not None:
            self._engine.begin_in_fork(is_torn)
        self._process = os.getpid()

    def run(self, requests: Sequence[Request], bar: Progress | None) -> None:
        """Takes turns until all requests have ended; lets them go after any exception."""
        engine, caller = self.engine, Caller()
        for request in requests:
            request.caller = caller
        try:
            self.add(requests)
            for request in requests:
                for _ in self.until(partial(_has_ended, request)):
                    if bar is not None:
                        bar.update()
        except BaseException:
            caller.is_gone = engine.has_leavers = True
            self.take(engine.tidy)
            raise

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what the request gets, up to its end; takes a turn for each step."""
        engine = self.engine
        try:
            self.add([request])
            while True:
                for _ in self.until(partial(_has_piece, request)):
                    pass
                delta = request.outbox.popleft()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self.leave(engine, request.caller)

    def add(self, requests: Sequence[Request]) -> None:
        """Puts admitted requests in the queue."""
        self.take(partial(self._add, requests))

    def leave(self, engine: Engine, caller: Caller) -> None:
        """Lets go of a caller's requests; a finalizer may call it.

        It must wait for nobody: if another thread has the turn, that one sees to it.
        """
        caller.is_gone = engine.has_leavers = True
        if self._holder in {None, get_ident()}:
            self.take(engine.tidy)

    def until(self, is_done: Callable[[], bool]) -> Iterator[None]:
        """Drives, or sleeps while another thread does; comes back after every pass or nap."""
        me = get_ident()
        while not is_done():
            if self._driver in {None, me}:
                yield from self._drive(is_done)
            else:
                self._sleep(is_done)
                yield

    def close(self) -> None:
        """Lets go of the engine. Requests of any thread end with "abort" after the pass that runs.

        May be called twice, also where an interrupt left the first call half done.
        """
        self._is_closing = True
        self.take(lambda: None)

    def _add(self, requests: Sequence[Request]) -> None:
        engine = self.engine
        for request in requests:
            if not request.caller.is_gone:
                engine.add(request)

    def _drive(self, is_done: Callable[[], bool]) -> Iterator[None]:
        before, self._driver = self._driver, get_ident()
        try:
            while not is_done():
                self.take(partial(self._step, is_done))
                yield
        finally:
            self._driver = before
            self._wake(all_of_them=True)

    def _sleep(self, is_done: Callable[[], bool]) -> None:
        """Until it is done, or nobody drives; or some time, as a precaution."""
        bell = Lock()
        bell.acquire()
        self._sleepers[bell] = is_done
        try:
            if not is_done() and self._driver is not None:
                bell.acquire(timeout=_NAP_S)
        finally:
            self._sleepers.pop(bell, None)

    def _wake(self, *, all_of_them: bool) -> None:
        for bell in list(self._sleepers):
            is_done = self._sleepers.get(bell)
            if is_done is not None and (all_of_them or is_done()):
                with suppress(RuntimeError):  # it rang already
                    bell.release()

    def _step(self, is_done: Callable[[], bool]) -> None:
        """One pass, or the end of all requests where closing is asked, unless it is done already.

        Another thread's turn may have done it while this one waited.
        """
        if is_done():
            return
        engine = self._engine
        assert engine is not None, "all requests have ended where the engine is gone"
        if self._is_closing:
            engine.abort(engine.scheduler.requests)
            return
        self._check_process()
        engine.step()

    def _end(self) -> None:
        """Closes, unless within a call of the engine: the turn of that call closes."""
        engine = self._engine
        if engine is None or engine.is_busy:
            return
        try:
            engine.abort(engine.scheduler.requests)
            _warn_of_release(engine)
        finally:
            self._engine = None
            if self._at_end is not None:
                self._at_end()
        del engine
        return_freed_memory()


def _warn_of_release(engine: Engine | None) -> None:
    """A drafter or model that fails to let a request go costs no answer."""
    error = None if engine is None else engine.take_release_failure()
    if error is not None:
        warn_caller(
            f"release of a request raised {type(error).__name__}: {error}; its answer is whole, "
            "but the drafter or the model may still hold something of it",
            RuntimeWarning,
        )


def _has_ended(request: Request) -> bool:
    return request.is_finished


def _has_piece(request: Request) -> bool:
    return bool(request.outbox)
