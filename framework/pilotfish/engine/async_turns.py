"""AsyncTurns: the engine's answers for coroutines, of any event loop.

Knows: which coroutines wait for which requests. Does not know: prompts, outputs or passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock, Thread

import attrs

from pilotfish.engine.outputs import Delta
from pilotfish.engine.request import Caller, Request
from pilotfish.engine.turns import Turns


@attrs.define(eq=False)
class _Open:
    """A request that a coroutine waits for. failure: of the passes that should have served it."""

    loop: asyncio.AbstractEventLoop
    bell: asyncio.Event
    failure: BaseException | None = None

    def ring(self) -> bool:
        """From another thread. Whether there is still an event loop to hear it."""
        try:
            self.loop.call_soon_threadsafe(self.bell.set)
        except RuntimeError:  # it is closed
            return False
        return True


class AsyncTurns:
    """A thread of its own takes turns while a request of any coroutine is open.

    It runs ahead of slow readers, whose pieces wait for them. What breaks a pass for all is raised
    in every coroutine that waits; a coroutine that is cancelled lets its requests go.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._open: dict[Request, _Open] = {}
        self._lock = Lock()
        self._has_thread = False

    async def run(self, requests: Sequence[Request]) -> None:
        """Until all have ended."""
        async for _ in self._pieces(requests):
            pass

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """What the request gets, up to its end."""
        async for _ in self._pieces([request]):
            while request.outbox:
                yield request.outbox.popleft()

    async def _pieces(self, requests: Sequence[Request]) -> AsyncGenerator[None, None]:
        """Comes back whenever one of them has got something, and when all have ended."""
        engine, caller = self._turns.engine, Caller()
        waits = _Open(asyncio.get_running_loop(), asyncio.Event())
        for request in requests:
            request.caller = caller
        try:
            await asyncio.to_thread(self._turns.add, requests)
            self._serve(requests, waits)
            while True:
                waits.bell.clear()
                has_ended = all(request.is_finished for request in requests)
                yield
                if has_ended:
                    return
                await waits.bell.wait()
                if waits.failure is not None:
                    raise waits.failure
        finally:
            for request in requests:
                self._open.pop(request, None)
            self._turns.leave(engine, caller)

    def _serve(self, requests: Sequence[Request], waits: _Open) -> None:
        with self._lock:
            self._open.update(dict.fromkeys(requests, waits))
            if not self._has_thread:
                self._has_thread = True
                Thread(target=self._drive, name="pilotfish-async").start()

    def _drive(self) -> None:
        while True:
            with self._lock:
                request = next(iter(self._open), None)
                if request is None:
                    self._has_thread = False
                    return
            failure: BaseException | None = None
            try:
                for _ in self._turns.until(partial(_is_over, request)):
                    self._tell()
            except BaseException as error:
                failure = error
            self._tell(failure)
            self._open.pop(request, None)

    def _tell(self, failure: BaseException | None = None) -> None:
        for request, waits in list(self._open.items()):
            if failure is not None:
                waits.failure = failure
            if (request.outbox or failure is not None) and not waits.ring():
                request.caller.is_gone = True
            if failure is not None:
                with suppress(KeyError):
                    del self._open[request]


def _is_over(request: Request) -> bool:
    return request.is_finished or request.caller.is_gone
