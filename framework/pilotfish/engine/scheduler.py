"""Scheduler: which requests run in the next pass, and how many rows of each.

Knows: counts of tokens, rows and pages. Does not know: tensors, models or text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from pilotfish.engine.request import Request
from pilotfish.errors import OutOfPagesError, StateError


class PageState(Protocol):
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


class Scheduler:
    """Continuous batching with chunked prefill, first come first served.

    Every pass: first one row for each request that decodes, then chunks of prompts in order of
    arrival, then new requests, up to max_batch_tokens rows and max_batch_size requests. When pages
    run out the newest running request gives its pages back and waits at the front of the queue; it
    is computed again later, prompt and answer so far as one prompt. The oldest running request is
    never preempted for another, and every admitted request fits when it is alone: so there is
    always progress, and nobody waits for ever.

    Drafts never cost another request its pages: where there is no room for drafted tokens or for
    scratch, the request runs without.

    state: where pages come from. on_release: told the id of a request that gave up its state.
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
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._on_release = on_release
        self._num_scratch = num_scratch
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._refused: tuple[Request, int, int] | None = None
        self.num_preemptions = 0

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that hold pages, oldest first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests without pages, in the order in which they will be admitted."""
        return tuple(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any request is left."""
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and gives its pages back."""
        if request.request_id in self._state.request_ids:
            self._give_up(request)
        for place in (self._running, self._waiting):
            with suppress(ValueError):
                place.remove(request)

    def requeue(self, request: Request) -> None:
        """Takes a running request's pages back; it waits at the front and is computed again."""
        try:
            self._give_up(request)
        finally:
            if request not in self._running and not request.is_finished:
                request.num_preemptions += 1
                self.num_preemptions += 1
                self._waiting.appendleft(request)

    def schedule(self) -> list[Request]:
        """Chooses the rows of the next pass, all reserved; `context.num_scheduled` says how many.

        Never empty while there is work. If a call on the state raises, every request is where it
        was or waits, and calling again is safe.
        """
        for request in [r for r in self._running if r.is_finished]:
            self.remove(request)  # its release failed when it ended
        plan: dict[Request, int] = {}
        budget = self._max_batch_tokens
        preempted = self.num_preemptions
        decoding = [r for r in self._running if r.num_pending == 1]
        prefilling = [r for r in self._running if r.num_pending > 1]
        for place, request in enumerate(decoding + prefilling):
            if budget and request in self._running:
                # Drafts take what is left after one row for every request that decodes.
                room = max(1, budget - max(0, len(decoding) - 1 - place))
                num_rows = self._reserve(request, min(request.num_wanted, room), plan)
                if num_rows:
                    plan[request] = num_rows
                budget = self._max_batch_tokens - sum(plan.values())
        if preempted == self.num_preemptions:
            self._admit(plan, budget)
        if not plan and self.has_work:
            raise StateError(
                f"nothing can run: {len(self._running)} requests hold pages and "
                f"{len(self._waiting)} wait; wanted every admitted request to fit alone"
            )
        for request, num_rows in plan.items():
            request.context.num_scheduled = num_rows
        return list(plan)

    def _reserve(self, request: Request, num_rows: int, plan: dict[Request, int]) -> int:
        """Reserves, preempting the newest until there is room; 0 rows if that is the request."""
        if self._reserve_with_draft(request, num_rows):
            return num_rows
        request.cut_draft(0)
        num_rows = min(num_rows, request.num_pending)
        while True:
            try:
                self._state.reserve(request.request_id, request.next_keys(num_rows))
            except OutOfPagesError:
                victim = self._running[-1]
                plan.pop(victim, None)
                self.requeue(victim)
                if victim is request:
                    return 0
            else:
                return num_rows

    def _reserve_with_draft(self, request: Request, num_rows: int) -> bool:
        """Reserves with room for drafting; False, and nothing reserved, where there is none."""
        request.cut_draft(max(0, num_rows - request.num_pending))
        is_last = num_rows >= request.num_pending and not request.keeps_logits
        request.num_scratch = self._num_scratch if is_last else 0
        try:
            self._state.reserve(
                request.request_id, request.next_keys(num_rows), request.num_scratch
            )
        except OutOfPagesError:
            request.num_scratch = 0
            return False
        return True

    def _admit(self, plan: dict[Request, int], budget: int) -> None:
        """Moves requests from the queue to the batch, in order, as long as they fit."""
        while self._waiting and budget and len(self._running) < self._max_batch_size:
            request = self._waiting[0]
            if self._is_refused(request):
                return
            num_rows = self._claim(request, budget)
            if not num_rows:
                available = self._state.num_available_pages
                self._refused = (request, available, len(self._running))
                return
            self._mark_running(request)
            plan[request] = num_rows
            budget -= num_rows

    def _claim(self, request: Request, budget: int) -> int:
        """Claims and reserves the first rows; returns how many, or 0 with nothing held."""
        state, request_id = self._state, request.request_id
        num_rows = 0
        try:
            request.context.num_computed = state.claim(
                request_id, request.prefix_keys, request.salt
            )
            if self._has_room(request):
                num_rows = min(request.num_pending, budget)
                if not self._reserve_with_draft(request, num_rows):
                    state.reserve(request_id, request.next_keys(num_rows))
        except OutOfPagesError:
            num_rows = 0
        except BaseException:
            if request_id in state.request_ids:
                self._give_up(request)
            raise
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
        """Releases what the request holds. If that fails, who still holds pages still runs."""
        request_id = request.request_id
        try:
            self._state.release(request_id)
        finally:
            if request_id in self._state.request_ids:
                self._mark_running(request)
            else:
                request.context.num_computed = request.context.num_scheduled = 0
                request.cut_draft(0)
                if request in self._running:
                    self._running.remove(request)
                if self._on_release is not None:
                    self._on_release(request_id)

    def _mark_running(self, request: Request) -> None:
        if request not in self._running:
            self._running.append(request)
        with suppress(ValueError):
            self._waiting.remove(request)
