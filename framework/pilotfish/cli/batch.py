"""Many requests, answered as they are read: some run, few are held, none is kept.

Knows: how many may be on their way, in which order answers are written, and how all ends early.
Does not know: where requests come from, or how an answer is shown.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Semaphore, Thread
from typing import TYPE_CHECKING

import attrs

from pilotfish.cli.batch_bar import BatchBar
from pilotfish.cli.requests import FileRequest
from pilotfish.errors import UserError

if TYPE_CHECKING:
    from pilotfish.engine import LLM, RequestOutput
    from pilotfish.engine.prompt import Prompt

MOST_HELD = 1024
"""Answers that wait for an earlier one, so that all are written in the order of the requests."""
_READ_AHEAD = 64

Asked = tuple[int, FileRequest | UserError]
"""The place of a request among all, and the request, or what is wrong with it."""


def answer_all(
    llm: LLM,
    asked: Iterator[Asked],
    write: Callable[[RequestOutput, str | None], None],
    *,
    in_order: bool = True,
    total: int | None = None,
) -> None:
    """Writes the answer to each request, in their order, or else as they are done.

    asked: read by a thread of its own, which may wait for the next one as long as it likes.
    write: is given an output and the request's `custom_id`.
    total: how many there are, if that is known. A request that is refused gets an output that says
    why. An interrupt, SIGTERM or an exception leaves nothing unwritten that is done.
    Raises what reading raises, after the answers to what was read; and any other exception.
    """
    with BatchBar(llm, total) as bar:
        batch = _Batch(llm=llm, write=write, in_order=in_order, bar=bar)
        try:
            asyncio.run(batch.run(asked))
        except asyncio.CancelledError:
            if not batch.is_terminated:
                raise
            signal.raise_signal(signal.SIGTERM)  # as nobody handles it, it ends the program


def prompt_of(llm: LLM, request: FileRequest) -> Prompt:
    """What `LLM.generate` takes. Raises RequestError."""
    if request.chat is not None:
        return llm.image_chat_prompt(request.chat, request.images, **request.chat_options)
    prompt = request.prompt_token_ids if request.prompt is None else request.prompt
    assert prompt is not None
    return {"prompt": prompt, "images": request.images}


@attrs.define(kw_only=True)
class _Batch:
    """Answers that are done and wait for earlier ones stand in `held`."""

    llm: LLM
    write: Callable[[RequestOutput, str | None], None]
    in_order: bool
    bar: BatchBar
    held: dict[int, tuple[RequestOutput, str | None]] = attrs.field(factory=dict)
    next_index: int = 0
    is_terminated: bool = False
    moved: asyncio.Condition = attrs.field(factory=asyncio.Condition)

    async def run(self, asked: Iterator[Asked]) -> None:
        """Until all are written."""
        source = _Source(asked)
        # Twice as many as run at once: some are in the queue whenever one ends.
        num_workers = 2 * self.llm.pipeline_config.runtime.max_batch_size
        self._cancel_at_sigterm()
        ticks = asyncio.create_task(self._tick())
        try:
            await asyncio.gather(*(self._work(source) for _ in range(num_workers)))
        except OSError:  # there is nowhere to write
            raise
        except BaseException:
            for index in sorted(self.held):
                self._write(*self.held[index])
            raise
        finally:
            ticks.cancel()
        if source.failure is not None:
            raise source.failure

    async def _work(self, source: _Source) -> None:
        while (one := await source.next()) is not None:
            custom_id = None if isinstance(one[1], UserError) else one[1].custom_id
            await self._done(await self._answer(*one), custom_id)

    async def _answer(self, index: int, request: FileRequest | UserError) -> RequestOutput:
        from pilotfish.engine import RequestOutput
        from pilotfish.engine.prompt import given_ids

        if isinstance(request, UserError):
            return RequestOutput.refused(index, (), None, request)
        seed, prompt = request.sampling.get("seed"), None
        try:
            prompt = prompt_of(self.llm, request)
            params = request.params(self.llm.default_sampling_params())
            (output,) = await self.llm.agenerate(prompt, params)
        except UserError as error:
            return RequestOutput.refused(index, given_ids(prompt), seed, error)
        others = [attrs.evolve(other, index=index) for other in output.others]
        return attrs.evolve(output, index=index, others=tuple(others))

    async def _done(self, output: RequestOutput, custom_id: str | None) -> None:
        if not self.in_order:
            self._write(output, custom_id)
            return
        async with self.moved:
            await self.moved.wait_for(lambda: output.index < self.next_index + MOST_HELD)
            self.held[output.index] = output, custom_id
            while self.next_index in self.held:
                self._write(*self.held.pop(self.next_index))
                self.next_index += 1
            self.moved.notify_all()

    def _write(self, output: RequestOutput, custom_id: str | None) -> None:
        self.bar.count(output)
        self.write(output, custom_id)

    def _cancel_at_sigterm(self) -> None:
        """SIGTERM becomes asyncio's CancelledError, where it would end the program at once."""
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            self.is_terminated = True
            task.cancel()

        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self.bar.look()


class _Source:
    """What a thread reads ahead. failure: what reading raised, after all before it was given."""

    def __init__(self, asked: Iterator[Asked]) -> None:
        self.failure: Exception | None = None
        self._queue: asyncio.Queue[Asked | None] = asyncio.Queue()
        self._room = Semaphore(_READ_AHEAD)
        self._loop = asyncio.get_running_loop()
        # A daemon, since it may wait for a line that never comes when all else has ended.
        Thread(target=self._read, args=(asked,), name="pilotfish-reader", daemon=True).start()

    async def next(self) -> Asked | None:
        """The next request; None when there is no other."""
        one = await self._queue.get()
        if one is None:
            self._queue.put_nowait(None)  # for the next who asks
        else:
            self._room.release()
        return one

    def _read(self, asked: Iterator[Asked]) -> None:
        with suppress(RuntimeError):  # the loop is closed: all has ended
            try:
                for one in asked:
                    self._room.acquire()
                    self._loop.call_soon_threadsafe(self._queue.put_nowait, one)
            except UserError as error:
                self.failure = error
            self._loop.call_soon_threadsafe(self._queue.put_nowait, None)
