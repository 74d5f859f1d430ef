"""Engine: the loop that joins requests, scheduler, runner and state.

Knows: the order of the four. Does not know: how any of them does its part.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from pilotfish.engine.outputs import FinishReason
from pilotfish.engine.request import Request
from pilotfish.engine.runner import Runner, StepResult
from pilotfish.engine.scheduler import Scheduler
from pilotfish.kernels.device import current_device


class Engine:
    """Runs requests together until each has had its one terminal event.

    release_failure: what a drafter's or model's `release` raised in the last call.

    Not for several threads at once. After an exception from `step` every request is intact: step
    again, or abort.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._ended: list[Request] = []
        self.release_failure: Exception | None = None

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Puts an admitted request in the queue."""
        self.scheduler.add(request)

    def step(self) -> list[Request]:
        """Runs one pass; returns the requests that ended since the last call that returned.

        A request whose own part fails ends with "error" and does not disturb the others. An
        exception that concerns the whole pass is raised; nothing that was not committed counts.
        """
        batch = self.scheduler.schedule()
        for request in batch:
            request.start()
        results = []
        if batch:
            with current_device(self.runner.model.device):
                results = self.runner.compute(batch)
        for request, result in zip(batch, results, strict=True):
            self._apply(request, result)
        self._raise_release_failure()
        ended, self._ended = self._ended, []
        return ended

    def abort(self, requests: Iterable[Request]) -> None:
        """Ends requests that have not ended; gives back what they hold, whatever fails."""
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
        self._raise_release_failure()

    def _raise_release_failure(self) -> None:
        """What letting go of a request raised, once everything else of the call is done."""
        self.release_failure = self.scheduler.take_release_failure()
        if self.release_failure is not None:
            raise self.release_failure

    def _apply(self, request: Request, result: StepResult) -> None:
        """Commits one request's rows, hands it its tokens, and ends it if it is done."""
        if result.error is not None:
            self._end(request, "error", str(result.error))
            return
        try:
            self.runner.commit(request, result)
        except BaseException:
            self.scheduler.requeue(request)  # how much was kept is not known: compute it again
            raise
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
        if reason is not None:
            self._end(request, reason, error)

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        request.finish(reason, error)
        self._ended.append(request)
        self.scheduler.remove(request)


def step_and_warn(engine: Engine) -> list[Request]:
    """As `Engine.step`; but a drafter or model that fails to let a request go costs no answer.

    What it raised becomes a RuntimeWarning: the pass is done and the pages are back.
    """
    try:
        return engine.step()
    except Exception as error:
        if error is not engine.release_failure:
            raise
        warnings.warn(
            f"release of a request raised {type(error).__name__}: {error}; its answer is whole, "
            "but the drafter or the model may still hold something of it",
            RuntimeWarning,
            stacklevel=5,
        )
        return []
