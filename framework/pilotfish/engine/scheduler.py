"""Scheduler: which requests run in the next pass, and how many rows of each.

Knows: counts of tokens, rows and pages. Does not know: tensors, models or text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from pilotfish.engine.prefix_waits import NamedPages, PrefixWaits
from pilotfish.engine.request import Request
from pilotfish.errors import OutOfPagesError, StateError


class PageState(NamedPages, Protocol):
    """What the scheduler asks of the state; `StateManager` offers it."""

    @property
    def num_available_pages(self) -> int:
        """Pages that reservations can still take."""
        ...

    @property
    def request_ids(self) -> Sequence[str]:
        """The claimed requests."""
        ...

    def pages_for(self, num_tokens: int) -> int:
        """Pages that so many rows of one request take."""
        ...

    def pages_of(self, request_id: str) -> Sequence[int]:
        """The request's pages."""
        ...

    def claim(self, request_id: str, keys: Sequence[int], salt: bytes) -> int:
        """Registers a request; returns the rows restored from shared pages."""
        ...

    def reserve(self, request_id: str, keys: Sequence[int], scratch: int = 0) -> None:
        """Makes room for rows, and scratch after them. Raises OutOfPagesError, nothing changed."""
        ...

    def release(self, request_id: str) -> None:
        """Gives the request's pages back."""
        ...

    def reset(self) -> None:
        """Gives all pages back, whatever an interrupted call left half done."""
        ...


class Scheduler:
    """Continuous batching with chunked prefill, first come first served.

    Every pass: first one row for each request that decodes, then chunks of prompts in order of
    arrival, then new requests, up to max_batch_tokens rows and max_batch_size requests. When pages
    run out the newest running request gives its pages back and waits at the front of the queue; it
    is computed again later, prompt and answer so far as one prompt. The oldest running request is
    never preempted for another, and every admitted request fits when it is alone: so there is
    always progress, and nobody waits for ever.

    A beginning that several requests share is computed once: see `PrefixWaits`. Those behind a
    request that waits for it are admitted meanwhile.

    Drafts never cost another request its pages: where there is no room for drafted tokens or for
    scratch, the request runs without.

    state: where pages come from. on_release: told the id of a request that gave up its state.
    What it raises is kept for `take_release_failure`: the pages are back, so nothing else stops.
    num_scratch: rows that drafting writes past the last one of a pass.
    """

    def __init__(
        self,
        state: PageState,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        on_release: Callable[[str], None] | None = None,
        num_scratch: int = 0,
    ) -> None:
        self._state = state
        self._prefixes = PrefixWaits(state)
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._on_release = on_release
        self._num_scratch = num_scratch
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._refused: tuple[Request, int, int] | None = None
        self.num_preemptions = 0
        self._release_failure: Exception | None = None

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that hold pages, oldest first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests without pages, in the order in which they will be admitted."""
        return tuple(self._waiting)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests that were added and not removed, in that order."""
        return tuple(self._requests.values())

    @property
    def has_work(self) -> bool:
        """Whether any request is left."""
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and gives its pages back."""
        if request.request_id in self._state.request_ids:
            self._give_up(request)
        for place in (self._running, self._waiting):
            with suppress(ValueError):
                place.remove(request)
        self._requests.pop(request.request_id, None)

    def restart(self) -> None:
        """Gives all pages back and lets every request wait, in the order in which they came.

        For after an exception that may have left any call half done: nothing is looked at but which
        requests there are; those that have ended are taken out. May itself be begun again.
        """
        self._state.reset()
        self._running, self._waiting, self._refused = [], deque(), None
        for request in self.requests:
            request.context.num_computed = request.context.num_scheduled = 0
            request.cut_draft(0)
            self._tell_released(request.request_id)
            if request.is_finished:
                del self._requests[request.request_id]
                continue
            if request.is_restart_due:
                request.restart()
            self._waiting.append(request)

    def take_release_failure(self) -> Exception | None:
        """The first exception of `on_release` since the last call; None where there was none."""
        failure, self._release_failure = self._release_failure, None
        return failure

    def requeue(self, request: Request) -> None:
        """Takes a running request's pages back; it waits at the front and is computed again."""
        self._give_up(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(request)

    def schedule(self) -> list[Request]:
        """Chooses the rows of the next pass, all reserved; `context.num_scheduled` says how many.

        Never empty while there is work. After an exception `restart` comes before the next call.
        """
        for request in [r for r in self._running if r.is_restart_due]:
            self.requeue(request)
            request.restart()
        plan: dict[Request, int] = {}
        decoding = [r for r in self._running if r.num_pending == 1]
        prefilling = [r for r in self._running if r.num_pending > 1]
        budget = self._max_batch_tokens - self._draft_rows(decoding, bool(prefilling))
        preempted = self.num_preemptions
        for request in decoding + prefilling:
            left = budget - sum(plan.values())
            if left and request in self._running:
                num_rows = self._rows(request, left)
                if self._reserve(request, num_rows, plan):
                    plan[request] = num_rows
        if preempted == self.num_preemptions:
            self._admit(plan, budget - sum(plan.values()))
        if not plan and self.has_work:
            raise StateError(
                f"nothing can run: {len(self._running)} requests hold pages and "
                f"{len(self._waiting)} wait; wanted every admitted request to fit alone"
            )
        for request in plan:
            self._add_draft(request, plan)
        for request, num_rows in plan.items():
            request.context.num_scheduled = num_rows
        return list(plan)

    def _draft_rows(self, decoding: Sequence[Request], is_prefilling: bool) -> int:
        """Rows of the pass that are kept for drafted tokens.

        What is left after one row for every request that decodes; half of it while prompts wait.
        """
        wanted = sum(len(request.context.draft_tokens) for request in decoding)
        room = max(0, self._max_batch_tokens - len(decoding))
        return min(wanted, room // 2 if is_prefilling or self._waiting else room)

    def _add_draft(self, request: Request, plan: dict[Request, int]) -> None:
        """Adds drafted tokens and room for drafting to a request's rows, where pages are free."""
        num_rows, request.num_scratch = plan[request], 0
        if num_rows < request.num_pending or request.keeps_logits:
            return
        request.cut_draft(max(0, self._max_batch_tokens - sum(plan.values())))
        num_drafted = len(request.context.draft_tokens)
        for scratch in dict.fromkeys((self._num_scratch, 0)):
            if not num_drafted and not scratch:
                return
            keys = request.next_keys(num_rows + num_drafted)
            with suppress(OutOfPagesError):  # then nothing has changed
                self._state.reserve(request.request_id, keys, scratch)
                request.num_scratch = scratch
                plan[request] = num_rows + num_drafted
                return
        request.cut_draft(0)

    def _reserve(self, request: Request, num_rows: int, plan: dict[Request, int]) -> bool:
        """Reserves, preempting the newest until there is room; False if that is the request."""
        keys = request.next_keys(num_rows)
        while True:
            try:
                self._state.reserve(request.request_id, keys)
            except OutOfPagesError:
                victim = self._running[-1]
                plan.pop(victim, None)
                self.requeue(victim)
                if victim is request:
                    return False
            else:
                return True

    def _admit(self, plan: dict[Request, int], budget: int) -> None:
        """Moves requests from the queue to the batch, in order, as long as they fit."""
        for request in self._next_waiting():
            if not budget or len(self._running) == self._max_batch_size:
                return
            if self._prefixes.must_wait(request, self._running):
                continue
            if self._is_refused(request):
                return
            num_rows = self._claim(request, budget)
            if not num_rows:
                available = self._state.num_available_pages
                self._refused = (request, available, len(self._running))
                return
            self._running.append(request)
            self._waiting.remove(request)
            plan[request] = num_rows
            budget -= num_rows

    def _next_waiting(self) -> list[Request]:
        """Those that are looked at in one pass: as many as may run at once."""
        return list(islice(self._waiting, self._max_batch_size))

    def _rows(self, request: Request, budget: int) -> int:
        """Rows of a pass, of those that wait for none."""
        num_rows = min(request.num_pending, budget)
        if num_rows == 1:
            return num_rows
        others = (one for one in self._next_waiting() if one is not request)
        return self._prefixes.cut(request, num_rows, others)

    def _claim(self, request: Request, budget: int) -> int:
        """Claims and reserves the first rows; returns how many, or 0 with nothing held."""
        state, request_id = self._state, request.request_id
        num_rows = 0
        try:
            request.context.num_computed = state.claim(
                request_id, request.prefix_keys, request.salt
            )
            if self._has_room(request):
                num_rows = self._rows(request, budget)
                state.reserve(request_id, request.next_keys(num_rows))
        except OutOfPagesError:
            num_rows = 0
        if not num_rows:
            self._give_up(request)
        return num_rows

    def _is_refused(self, request: Request) -> bool:
        """Whether it did not fit last time, and nothing was given back since."""
        if self._refused is None or not self._running:
            return False
        refused, available, num_running = self._refused
        return (
            refused is request
            and self._state.num_available_pages <= available
            and len(self._running) >= num_running
        )

    def _has_room(self, request: Request) -> bool:
        """Whether all its tokens fit, and a page for each running request's next rows.

        Only a guess that saves work: without it a prompt would be begun and preempted again and
        again. A request that would be alone is always tried.
        """
        if not self._running:
            return True
        state = self._state
        missing = state.pages_for(len(request.context.tokens) + 1) - len(
            state.pages_of(request.request_id)
        )
        return missing + len(self._running) <= state.num_available_pages

    def _give_up(self, request: Request) -> None:
        """Releases what the request holds."""
        self._state.release(request.request_id)
        request.context.num_computed = request.context.num_scheduled = 0
        request.cut_draft(0)
        if request in self._running:
            self._running.remove(request)
        self._tell_released(request.request_id)

    def _tell_released(self, request_id: str) -> None:
        try:
            if self._on_release is not None:
                self._on_release(request_id)
        except Exception as error:
            self._release_failure = self._release_failure or error
