"""Engine: the loop that joins requests, scheduler, runner and state.

Knows: the order of the four. Does not know: how any of them does its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any

import torch

from pilotfish.engine.outputs import FinishReason
from pilotfish.engine.request import Request
from pilotfish.engine.runner import Runner
from pilotfish.engine.scheduler import Scheduler
from pilotfish.engine.step_result import StepResult
from pilotfish.errors import StateError


class WholeCalls:
    """What `Engine` and whatever stands in its place have in common: calls that are done whole.

    scheduler: has `requests`, `has_work` and `release_failure`. has_leavers, is_busy: see `Engine`.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._ended: list[Request] = []
        self.has_leavers = False
        self.is_busy = False
        self._is_whole = True

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self.scheduler.has_work)

    def take_release_failure(self) -> Exception | None:
        """What a drafter's or model's `release` raised first since the last call; mostly None.

        The pass is done and the pages are back: nothing else stops for it.
        """
        failure: Exception | None = self.scheduler.release_failure
        self.scheduler.release_failure = None
        return failure

    def abort(self, requests: Iterable[Request]) -> None:
        """Ends requests that have not ended; gives back what they hold, whatever fails."""
        self._whole(partial(self._abort, requests))

    def tidy(self) -> None:
        """Lets go of the requests of callers that are gone, and of those that ended as a `step` was
        interrupted. Nothing is done within a call.
        """
        if not self.is_busy:
            self._whole(lambda: None)
            self._ended.clear()

    def _whole(self, work: Callable[[], None]) -> None:
        """Does the work. If that is interrupted anywhere, all begins anew from the requests."""
        if self.is_busy:
            raise StateError(
                "the engine was called within one of its own calls, as a signal handler or a "
                "finalizer does; wanted a call after that one has returned"
            )
        self.is_busy = True
        try:
            if not self._is_whole:  # the restart was interrupted too
                self._restart()
            self._is_whole = False
            with torch.inference_mode():  # in which a caller may have loaded the model
                if self.has_leavers:
                    self._let_leavers_go()
                work()
                if self.has_leavers:
                    self._let_leavers_go()
            self._is_whole = True
        except BaseException:
            self._restart()
            raise
        finally:
            self.is_busy = False

    def _let_leavers_go(self) -> None:
        self.has_leavers = False
        self._abort([one for one in self.scheduler.requests if one.caller.is_gone])

    def _abort(self, requests: Iterable[Request]) -> None:
        raise NotImplementedError

    def _restart(self) -> None:
        """After an exception, so that every request can go on; may itself be begun again."""
        raise NotImplementedError


class Engine(WholeCalls):
    """Runs requests together until each has had its one terminal event.

    has_leavers: set beside `Caller.is_gone`, at any time and from any thread; the next call, or the
        one that runs, lets go of the requests of such a caller.

    Not for several threads at once, nor for a call within a call, as from a signal handler or a
    finalizer: that raises StateError. After any exception, an interrupt included, every request is
    intact, and its rows are computed anew: step again, or abort.
    """

    scheduler: Scheduler

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        super().__init__(scheduler)
        self.runner = runner

    def add(self, request: Request) -> None:
        """Puts an admitted request in the queue."""
        self._whole(partial(self.scheduler.add, request))

    def step(self) -> list[Request]:
        """Runs one pass; returns the requests that ended since the last call that returned.

        A request whose own part fails ends with "error" and does not disturb the others. An
        exception that concerns the whole pass is raised; nothing that was not committed counts.
        `take_release_failure` gives what letting go of a request raised.
        """
        self._whole(self._step)
        ended, self._ended = self._ended, []
        return ended

    def forget_cached_prefixes(self) -> None:
        """Empties the prefix cache."""
        self._whole(self.runner.state.forget_cached)

    def begin_in_fork(self, is_torn: bool) -> None:
        """For a fork of the process, which lacks the other threads and whom they answer.

        is_torn: one of them was in a call of the engine.
        """
        me = get_ident()
        for request in self.scheduler.requests:  # a stream may be read by any thread
            request.caller.is_gone |= not request.streams and request.caller.thread != me
        self.has_leavers = True
        if is_torn:
            self.is_busy = self._is_whole = False

    @torch.inference_mode()
    def _restart(self) -> None:
        for request in self.scheduler.requests:
            try:
                request.settle()
            except Exception as failure:
                request.finish("error", f"{type(failure).__name__}: {failure}")
            if request.is_finished and request not in self._ended:
                self._ended.append(request)
        self.scheduler.restart()
        self.has_leavers = True  # it may have been interrupted as it looked for them
        self._let_leavers_go()
        self._is_whole = True

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        for request in batch:
            if request.started is None:
                request.started = perf_counter()
        results = self.runner.compute(batch) if batch else []
        for request, result in zip(batch, results, strict=True):
            self._apply(request, result)

    def _abort(self, requests: Iterable[Request]) -> None:
        failure: Exception | None = None
        for request in requests:
            if not request.is_finished:
                request.finish("abort")
            try:
                self.scheduler.remove(request)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _apply(self, request: Request, result: StepResult) -> None:
        """Commits one request's rows, hands it its tokens, and ends it if it is done."""
        if result.error is not None:
            self._end(request, "error", str(result.error))
            return
        self.runner.commit(request, result)
        reason: FinishReason | None = None
        error: str | None = None
        if request.keeps_logits:
            reason = None if request.num_wanted_rows else "stop"
        elif result.tokens:
            try:
                reason = request.accept(
                    result.tokens, result.logprobs, result.drafted, result.num_accepted
                )
            except Exception as failure:
                reason, error = "error", f"{type(failure).__name__}: {failure}"
                with suppress(Exception):  # it may fail of the same
                    request.settle()
        if reason is not None:
            self._end(request, reason, error)

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        if not request.is_finished:  # by `settle`, whose word on a whole answer counts
            request.finish(reason, error)
        self._ended.append(request)
        self.scheduler.remove(request)
