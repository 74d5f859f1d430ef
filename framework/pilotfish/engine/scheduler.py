"""Scheduler: which requests run in the next pass, and how many rows of each.

Knows: counts of tokens, rows and pages. Does not know: tensors, models or text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

import attrs

from pilotfish.batch import NO_DRAFT
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

    def missing_pages(self, request_id: str, num_rows: int) -> int:
        """Pages that so many rows past its committed ones take, beside those that it has."""
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


@attrs.define(eq=False)
class _PassPlan:
    """rows: of each request; drafted tokens are added as they are reserved. pages: that the rows
    take, 0 once they are reserved. num_rows, num_pages: the sums.
    """

    rows: dict[Request, int] = attrs.field(factory=dict)
    pages: dict[Request, int] = attrs.field(factory=dict)
    num_rows: int = 0
    num_pages: int = 0

    def add(self, request: Request, num_rows: int, num_pages: int) -> None:
        self.rows[request], self.pages[request] = num_rows, num_pages
        self.num_rows += num_rows
        self.num_pages += num_pages

    def drop(self, request: Request) -> None:
        """Without the request, if it is planned."""
        self.num_rows -= self.rows.pop(request, 0)
        self.num_pages -= self.pages.pop(request, 0)


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
    The first exception is kept in `release_failure` until it is taken: the pages are back, so
    nothing else stops.
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
        self.release_failure: Exception | None = None

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
            request.drop_state()
            self._tell_released(request.request_id)
            if request.is_finished:
                del self._requests[request.request_id]
                continue
            if request.is_restart_due:
                request.restart()
            self._waiting.append(request)

    def requeue(self, request: Request) -> None:
        """Takes a running request's pages back; it waits at the front and is computed again."""
        self._give_up(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(request)

    def schedule(self) -> list[Request]:
        """Chooses the rows of the next pass, all reserved; `num_scheduled` says how many.

        Never empty while there is work. After an exception `restart` comes before the next call.
        """
        plan = _PassPlan()
        decoding, prefilling = self._split_running()
        budget = self._max_batch_tokens - self._draft_rows(decoding, bool(prefilling))
        for request in decoding + prefilling:
            if plan.num_rows < budget:
                self._plan_rows(request, plan, budget)
        if self._waiting and self._free_pages(plan) >= 0:
            self._admit(plan, budget)
        for request in list(plan.rows):
            if request in plan.rows:  # not preempted for one before it
                self._reserve(request, plan)
        if not plan.rows and self.has_work:
            raise StateError(
                f"nothing can run: {len(self._running)} requests hold pages and "
                f"{len(self._waiting)} wait; wanted every admitted request to fit alone"
            )
        return list(plan.rows)

    def _split_running(self) -> tuple[list[Request], list[Request]]:
        """Those that decode and those that prefill; what is to be computed anew waits for it."""
        decoding: list[Request] = []
        prefilling: list[Request] = []
        for request in tuple(self._running):
            if request.is_restart_due:
                self.requeue(request)
                request.restart()
            else:
                (decoding if request.num_pending == 1 else prefilling).append(request)
        return decoding, prefilling

    def _draft_rows(self, decoding: Sequence[Request], is_prefilling: bool) -> int:
        """Rows of the pass that are kept for drafted tokens.

        What is left after one row for every request that decodes; half of it while prompts wait.
        """
        wanted = 0
        for request in decoding:
            wanted += len(request.draft.tokens)
        room = max(0, self._max_batch_tokens - len(decoding))
        return min(wanted, room // 2 if is_prefilling or self._waiting else room)

    def _plan_rows(self, request: Request, plan: _PassPlan, budget: int) -> None:
        num_rows = min(request.num_pending, budget - plan.num_rows)
        if num_rows > 1:
            others = (one for one in self._next_waiting() if one is not request)
            num_rows = self._prefixes.cut(request, num_rows, others)
        plan.add(request, num_rows, self._state.missing_pages(request.request_id, num_rows))

    def _free_pages(self, plan: _PassPlan) -> int:
        """Pages that no row of the plan needs; below 0 where some must be taken back for it."""
        return self._state.num_available_pages - plan.num_pages

    def _reserve(self, request: Request, plan: _PassPlan) -> None:
        """Reserves a request's rows, preempting the newest until there is room.

        Drafted tokens and room for drafting are among them where no other row needs the pages.
        """
        request.num_scratch = 0
        drafted = self._draft(request, plan) if request.draft.tokens or self._num_scratch else 0
        plan.num_pages -= plan.pages[request]
        plan.pages[request] = 0
        while True:
            request.num_scheduled = plan.rows[request] + drafted
            try:
                self._state.reserve(
                    request.request_id,
                    request.next_keys(request.num_scheduled),
                    request.num_scratch,
                )
            except OutOfPagesError:  # a cache without pages may be full too: nobody counts those
                if self._drop_drafts(plan, request):
                    drafted = 0
                    continue
                victim = self._running[-1]
                self.requeue(victim)
                plan.drop(victim)
                if victim is request:
                    self._refuse(request, plan)
                    return
            else:
                plan.rows[request] += drafted
                plan.num_rows += drafted
                return

    def _drop_drafts(self, plan: _PassPlan, last: Request) -> bool:
        """Takes drafts, and the room for them, from the rows reserved so far and from `last`.

        Whether there was any.
        """
        found = False
        for request in plan.rows:
            if request.draft.tokens or request.num_scratch:
                found = True
                num_drafted = 0 if request is last else len(request.draft.tokens)
                request.draft, request.num_scratch = NO_DRAFT, 0
                plan.rows[request] -= num_drafted
                plan.num_rows -= num_drafted
                request.num_scheduled = plan.rows[request]
                if request is not last:
                    keys = request.next_keys(request.num_scheduled)
                    self._state.reserve(request.request_id, keys)
            if request is last:
                break
        return found

    def _draft(self, request: Request, plan: _PassPlan) -> int:
        """Cuts the draft to what fits in the pass; how many tokens that are."""
        num_rows = plan.rows[request]
        if num_rows < request.num_pending or request.keeps_logits:
            return 0
        request.draft = request.draft.first(max(0, self._max_batch_tokens - plan.num_rows))
        num_drafted = len(request.draft.tokens)
        free = max(0, self._free_pages(plan)) + plan.pages[request]
        for scratch in dict.fromkeys((self._num_scratch, 0)):
            num_all = num_rows + num_drafted + scratch
            if self._state.missing_pages(request.request_id, num_all) <= free:
                request.num_scratch = scratch
                return num_drafted
        request.draft = NO_DRAFT
        return 0

    def _admit(self, plan: _PassPlan, budget: int) -> None:
        """Moves requests from the queue to the batch, in order, as long as they fit."""
        for request in self._next_waiting():
            if plan.num_rows >= budget or len(self._running) == self._max_batch_size:
                return
            if self._prefixes.must_wait(request, self._running):
                continue
            if self._is_refused(request):
                return
            if not self._claim(request, plan):
                self._refuse(request, plan)
                return
            self._running.append(request)
            self._waiting.remove(request)
            self._plan_rows(request, plan, budget)

    def _next_waiting(self) -> list[Request]:
        """Those that are looked at in one pass: as many as may run at once."""
        return list(islice(self._waiting, self._max_batch_size))

    def _claim(self, request: Request, plan: _PassPlan) -> bool:
        """Claims a request where it fits; holds nothing where it does not."""
        request.num_computed = self._state.claim(
            request.request_id, request.prefix_keys, request.salt
        )
        fits = self._has_room(request, plan)
        if not fits:
            self._give_up(request)
        return fits

    def _refuse(self, request: Request, plan: _PassPlan) -> None:
        """Notes that it does not fit, which is so until something is given back."""
        self._refused = (request, self._free_pages(plan), len(self._running))

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

    def _has_room(self, request: Request, plan: _PassPlan) -> bool:
        """Whether all its tokens fit, and a page for each running request's next rows.

        Only a guess that saves work: without it a prompt would be begun and preempted again and
        again. A request that would be alone is always tried.
        """
        missing = self._state.missing_pages(request.request_id, request.num_pending + 1)
        return not self._running or missing + len(self._running) <= self._free_pages(plan)

    def _give_up(self, request: Request) -> None:
        """Releases what the request holds."""
        self._state.release(request.request_id)
        request.drop_state()
        if request in self._running:
            self._running.remove(request)
        self._tell_released(request.request_id)

    def _tell_released(self, request_id: str) -> None:
        try:
            if self._on_release is not None:
                self._on_release(request_id)
        except Exception as error:
            self.release_failure = self.release_failure or error
