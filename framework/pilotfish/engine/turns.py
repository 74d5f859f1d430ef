"""Turns: one engine for several threads, signal handlers and finalizers.

Knows: who runs the engine, how streams end, and how all ends. Does not know: prompts or outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from threading import RLock, get_ident
from typing import TypeVar

import torch

from pilotfish.engine.engine import Engine, step_and_warn
from pilotfish.engine.host_memory import return_freed_memory
from pilotfish.engine.outputs import Delta
from pilotfish.engine.progress import Progress
from pilotfish.engine.request import Caller, Request
from pilotfish.errors import PilotfishError

T = TypeVar("T")


class Turns:
    """Lets one thread run the engine at a time, in the process that made it, until it is closed.

    A signal handler or a finalizer may run in the midst of a pass of its own thread. What it lets
    go of, or closes, waits for the end of that pass; what it asks to run raises StateError.

    before_pass: called in each turn that adds requests, before they are. may_fork: whether a pass
        of several threads runs in a fork of the process too; torch's waits there for ever.
    """

    def __init__(self, engine: Engine, before_pass: Callable[[], None], *, may_fork: bool) -> None:
        self._engine: Engine | None = engine
        self._before_pass = before_pass
        self._lock = RLock()
        self._holder: int | None = None
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

    def check_open(self) -> None:
        """Raises PilotfishError where the engine is closed, or another process's."""
        if self._engine is None or self._is_closing:
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
        with self._lock:
            before, self._holder = self._holder, get_ident()
            try:
                return work()
            finally:
                self._holder = before
                if self._is_closing:
                    self._end()

    def _begin_in_fork(self) -> None:
        """A fork has none of its parent's other threads: nobody ends what one of them began."""
        if self._holder not in {None, get_ident()}:
            self._lock, self._holder = RLock(), None
            if self._engine is not None:
                self._engine.begin_anew()
        self._process = os.getpid()

    def run(self, requests: Sequence[Request], bar: Progress | None) -> None:
        """Steps until all requests have ended, within a turn; lets them go after any exception."""
        engine, caller = self.engine, Caller()
        for request in requests:
            request.caller = caller
        try:
            self._add(engine, requests)
            for request in requests:
                while not request.is_finished:  # also by who steps between two passes of ours
                    ended = self._step(engine)
                    if bar is not None:
                        bar.update([one for one in ended if one.caller is caller])
        finally:
            caller.is_gone = engine.has_leavers = True
            engine.tidy()

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what the request gets, up to its end; takes a turn for each step."""
        engine = self.engine
        try:
            self.take(lambda: self._add(engine, [request]))
            while True:
                while not request.outbox:
                    self.take(lambda: request.outbox or self._step(engine))
                delta = request.outbox.popleft()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            request.caller.is_gone = engine.has_leavers = True
            # A finalizer must wait for nobody: if another thread has the turn, that one sees to it.
            if self._holder in {None, get_ident()}:
                self.take(engine.tidy)

    def close(self) -> None:
        """Lets go of the engine. Requests of any thread end with "abort" after the pass that runs.

        May be called twice, also where an interrupt left the first call half done.
        """
        self._is_closing = True
        self.take(lambda: None)

    def _add(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.check_open()
        self._before_pass()
        for request in requests:
            engine.add(request)

    def _step(self, engine: Engine) -> Sequence[Request]:
        """One pass, or the end of all requests where closing is asked. Returns which ended."""
        if not self._is_closing:
            self._check_process()
            return step_and_warn(engine)
        ended = engine.scheduler.requests
        engine.abort(ended)
        return ended

    def _end(self) -> None:
        """Closes, unless within a call of the engine: the turn of that call closes."""
        engine = self._engine
        if engine is None or engine.is_busy:
            return
        try:
            engine.abort(engine.scheduler.requests)
        finally:
            self._engine = None
        del engine
        return_freed_memory()
