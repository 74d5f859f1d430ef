"""Helper: the one thread in which passes run, so that an interrupt never cuts one in two.

Knows: jobs in order, what a thread has of its own in torch. Does not know: what a job does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Job:
    """Work that was handed over."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._has_ended = threading.Lock()  # of C: a signal handler may come at any place
        self._has_ended.acquire()
        self._is_inference = torch.is_inference_mode_enabled()
        self._result: Any = None
        self._error: BaseException | None = None

    def do(self) -> None:
        """In the helper's thread."""
        assert self._work is not None
        try:
            with torch.inference_mode(self._is_inference):
                self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._work = None
            self._has_ended.release()

    @property
    def has_ended(self) -> bool:
        """Whether it was done."""
        return not self._has_ended.locked()

    def wait(self) -> Any:
        """Its result, once; raises what it raised."""
        self._has_ended.acquire()
        try:
            if self._error is not None:
                raise self._error
            return self._result
        finally:
            self._has_ended.release()
            self._result = self._error = None


class Helper:
    """A thread that does jobs in the order in which they came.

    num_threads: of torch, in that thread.
    """

    def __init__(self, num_threads: int) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._last: Job | None = None
        threading.Thread(
            target=_work, args=(self._jobs, num_threads), name="pilotfish ranks", daemon=True
        ).start()

    def begin(self, work: Callable[[], Any]) -> Job:
        """Hands work over, and does not wait."""
        self._last = job = Job(work)
        self._jobs.put(job)
        return job

    @property
    def is_idle(self) -> bool:
        """Whether all that was handed over is done."""
        return self._last is None or self._last.has_ended

    def run(self, work: Callable[[], T]) -> T:
        """Does the work there, and waits.

        An exception that comes to this thread meanwhile, as an interrupt does, is raised when the
        work has ended.
        """
        try:
            result: T = self.begin(work).wait()
        except BaseException:
            self._settle()
            raise
        return result

    def stop(self) -> None:
        """No more jobs; does not wait."""
        self._jobs.put(None)

    def _settle(self) -> None:
        """Waits for all that was handed over: jobs are done in order, so for one that is last."""
        while True:
            try:
                self.begin(_nothing).wait()
            except BaseException:  # a second interrupt; the first is being raised
                continue
            return


def _nothing() -> None:
    pass


def _work(jobs: SimpleQueue[Job | None], num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    while (job := jobs.get()) is not None:
        job.do()
        del job
