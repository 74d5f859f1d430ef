"""A history: drawn calls of one LLM, struck by exceptions at any point, audited after each.

Knows: what every call may give, and what must hold between two. Does not know: why it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import random
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import torch

from pilotfish import RequestOutput
from pilotfish.engine.request import Request
from pilotfish.errors import CapacityError, PilotfishError, RequestError
from soak.strikes import KINDS, Strike, draw_strike
from soak.world import Job, World

MOST_STREAMS = 5


@attrs.define(eq=False)
class Reading:
    """A stream, and what came of it so far."""

    job: Job
    stream: Generator[Any, None, None]
    tokens: list[int] = attrs.field(factory=list)
    text: str = ""
    logprobs: list[Any] = attrs.field(factory=list)

    @property
    def request(self) -> Request | None:
        """The request of a stream that has begun and not ended."""
        if inspect.getgeneratorstate(self.stream) != inspect.GEN_SUSPENDED:
            return None
        found: Request = self.stream.gi_frame.f_locals["request"]
        return found


class History:
    """One history. `play` raises AssertionError, or whatever should not have been raised."""

    def __init__(self, number: int, world: World) -> None:
        self.draw = random.Random(f"soak {number}")
        self.world = world
        self.setup = world.setup(self.draw)
        self.jobs = [world.job(self.draw, self.setup) for _ in range(self.draw.randint(2, 6))]
        self.num_struck = 0
        self.told: list[str] = []
        self.dropped: set[str] = set()

    def play(self) -> None:
        with world_warnings(), self.world.llm(self.setup, self.jobs) as self.llm:
            self.readings: list[Reading] = []
            self.strike: Strike = draw_strike(self.draw)
            for _ in range(self.draw.randint(4, 12)):
                name = self.draw.choice(ACTIONS)
                self.told.append(f"{name}, {len(self.readings)} streams")
                getattr(self, f"_{name}")()
                self.audit()
                if self.strike.has_struck:
                    self.num_struck += 1
                    self.strike = draw_strike(self.draw)
            self._end()

    # Actions

    def _open(self) -> None:
        job = self.draw.choice(self.jobs)
        if len(self.readings) < MOST_STREAMS:
            with self._may_be_struck():
                self.readings.append(Reading(job, self.strike.during(lambda: self._stream(job))))

    def _stream(self, job: Job) -> Any:
        return self.llm.stream(list(job.prompt), job.params)

    def _read(self) -> None:
        for _ in range(self.draw.randint(1, 5)):
            if self.readings:
                self._read_one(self.draw.choice(self.readings))

    def _read_one(self, reading: Reading) -> None:
        try:
            delta = self.strike.during(lambda: next(reading.stream))
        except BaseException as error:
            self._want_planted(error)
            self.readings.remove(reading)
            self._check_beginning(reading)
            assert inspect.getgeneratorstate(reading.stream) == inspect.GEN_CLOSED
            return
        reading.tokens += delta.token_ids
        reading.text += delta.text
        reading.logprobs += delta.logprobs or []
        if delta.output is not None:
            self.readings.remove(reading)
            assert reading.tokens == list(delta.output.token_ids)
            assert reading.text == delta.output.text
            assert reading.logprobs == list(delta.output.logprobs or [])
            self._check_output(reading.job, delta.output)
            assert next(reading.stream, None) is None

    def _close(self) -> None:
        if self.readings:
            reading = self.readings.pop(self.draw.randrange(len(self.readings)))
            self._check_beginning(reading)
            with self._may_be_struck():
                self.strike.during(reading.stream.close)
            reading.stream.close()

    def _drop(self) -> None:
        """Left to the reference count, or in a cycle to the collector, at any later point."""
        if self.readings:
            reading = self.readings.pop(self.draw.randrange(len(self.readings)))
            self._check_beginning(reading)
            if self.draw.random() < 0.7:
                self.dropped.add(reading.request.request_id if reading.request else "")
                cycle: list[Any] = [reading.stream]
                cycle.append(cycle)
                del cycle
            del reading
            if self.draw.random() < 0.3:
                gc.collect()
                self.dropped.clear()

    def _throw(self) -> None:
        """A reader's own exception."""
        if self.readings:
            reading = self.readings.pop(self.draw.randrange(len(self.readings)))
            self._check_beginning(reading)
            with suppress(KeyError), self._may_be_struck():
                self.strike.during(lambda: reading.stream.throw(KeyError("the reader's own")))

    def _generate(self) -> None:
        jobs = [self.draw.choice(self.jobs) for _ in range(self.draw.randint(1, 4))]
        prompts = [list(job.prompt) for job in jobs]
        is_refused = len(jobs) > 1 and self.draw.random() < 0.2
        if is_refused:
            prompts[0] = []
        counts = [self.draw.choice([1, 1, 1, 2, 3]) for _ in jobs]
        params = [attrs.evolve(job.params, n=n) for job, n in zip(jobs, counts, strict=True)]
        with self._may_be_struck():
            outputs = self.strike.during(lambda: self.llm.generate(prompts, params))
            assert [output.index for output in outputs] == list(range(len(jobs)))
            if is_refused:
                assert "empty" in str(outputs[0].error)
            answered = list(zip(jobs, counts, outputs, strict=True))[is_refused:]
            for job, n, output in answered:
                assert [one.sample for one in output.outputs] == list(range(n))
                for one in output.outputs:
                    self._check_output(self.world.sample(job, one.sample), one)

    def _score(self) -> None:
        prompt = self.draw.choice(self.jobs).prompt
        with self._may_be_struck():
            found = self.strike.during(lambda: self.llm.score(list(prompt)))
            wanted = self.world.scores(self.setup, prompt)
            assert torch.equal(found, wanted), "scores differ"

    def _forget(self) -> None:
        with self._may_be_struck():
            self.strike.during(self.llm.forget_cached_prefixes)

    def _refuse(self) -> None:
        with self._may_be_struck(), suppress(RequestError, CapacityError):
            wrong = self.draw.choice([[], [10**6], [1] * 1000])
            self.strike.during(lambda: self.llm.generate(wrong))

    def _thread(self) -> None:
        """Calls of three threads at once, of which no strike knows."""
        jobs = [self.draw.choice(self.jobs) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            streamed = [pool.submit(lambda job=job: list(self._stream(job))) for job in jobs[:2]]
            outputs = pool.submit(
                self.llm.generate, [list(job.prompt) for job in jobs], [job.params for job in jobs]
            )
            for job, output in zip(jobs, outputs.result(), strict=True):
                self._check_output(job, output)
            for job, found in zip(jobs, streamed, strict=False):
                self._check_output(job, found.result()[-1].output)

    def _coroutines(self) -> None:
        """Coroutines of one event loop, some of them cancelled on the way."""
        jobs = [self.draw.choice(self.jobs) for _ in range(4)]
        patience = [self.draw.choice([None, 0, 1, 3]) for _ in jobs[:3]]
        asyncio.run(self._gather(jobs, patience))

    async def _gather(self, jobs: Sequence[Job], patience: Sequence[int | None]) -> None:
        async def read(job: Job, most: int | None) -> None:
            tokens: list[int] = []
            async with contextlib.aclosing(
                self.llm.astream(list(job.prompt), job.params)
            ) as stream:
                async for delta in stream:
                    if most is not None and len(tokens) > most:
                        break
                    tokens += delta.token_ids
                    if delta.output is not None:
                        self._check_output(job, delta.output)
            wanted = self.world.answer(self.setup, job)
            assert tokens == list(wanted.token_ids)[: len(tokens)]

        last = jobs[-1]
        *_, outputs = await asyncio.gather(
            *map(read, jobs[:3], patience),
            self.llm.agenerate([list(last.prompt)] * 2, last.params),
        )
        for output in outputs:
            self._check_output(last, output)

    def _end(self) -> None:
        """Reads on, lets go, or closes over what runs; then nothing is held."""
        how = self.draw.choice(["read", "let go", "close", "close elsewhere"])
        if how == "read":
            while self.readings:
                self._read_one(self.draw.choice(self.readings))
        if how.startswith("close"):
            self._close_llm(in_thread=how == "close elsewhere")
            return
        for reading in self.readings:
            reading.stream.close()
        self.readings.clear()
        gc.collect()
        self.dropped.clear()
        self.audit()
        state = self.llm.engine.runner.state
        assert state.num_available_pages == state.num_pages, "pages are left behind"
        self.llm.forget_cached_prefixes()
        assert state.pool.num_free == state.num_pages, "pages stay cached"
        self.audit()

    def _close_llm(self, *, in_thread: bool) -> None:
        """Streams end with "abort", here or in the midst of their passes."""
        state = self.llm.engine.runner.state
        if in_thread:
            with ThreadPoolExecutor(1) as pool:
                closing = pool.submit(self.llm.close)
                for reading in self.readings:
                    with suppress(PilotfishError):  # one that had not begun
                        self._read_to_the_end(reading)
                closing.result()
        else:
            self.llm.close()
        for reading in self.readings:
            with suppress(PilotfishError):
                self._read_to_the_end(reading)
        assert state.num_available_pages == state.num_pages, "pages are left behind"

    def _read_to_the_end(self, reading: Reading) -> None:
        for delta in reading.stream:
            reading.tokens += delta.token_ids
            if delta.output is not None:
                assert reading.tokens == list(delta.output.token_ids)
                if delta.finish_reason != "abort":
                    self._check_output(reading.job, delta.output)
        wanted = self.world.answer(self.setup, reading.job)
        assert reading.tokens == list(wanted.token_ids)[: len(reading.tokens)]

    # What must hold

    def audit(self) -> None:
        """The books balance, and hold what open streams need and nothing else."""
        engine = self.llm.engine
        engine.tidy()  # a strike may come as the last call ends: the next one puts that right
        scheduler, state = engine.scheduler, engine.runner.state
        state.check()
        requests = [reading.request for reading in self.readings]
        wanted = {r.request_id for r in requests if r is not None and not r.is_finished}
        live = {request.request_id for request in scheduler.requests}
        running = {request.request_id for request in scheduler.running}
        waiting = {request.request_id for request in scheduler.waiting}
        assert wanted <= live <= wanted | self.dropped, (
            f"{live - wanted - self.dropped} left behind, {wanted - live} lost"
        )
        assert running | waiting == live
        assert not running & waiting
        assert set(state.request_ids) == running
        assert len(scheduler.running) + len(scheduler.waiting) == len(live)
        for request in scheduler.requests:
            done = request.num_computed
            assert done == (state.num_committed(request.request_id) if done else 0)
        for cache in state._slot_caches._caches:
            slots: Any = cache
            assert set(slots.slots.request_ids) == running, "slots are left behind"
        for owner in (engine.runner, self.llm.proposer):
            for name in ("_draft_probs", "_indices"):
                assert set(getattr(owner, name, ())) <= live, f"{name} are left behind"

    def _check_output(self, job: Job, output: RequestOutput | None) -> None:
        assert output is not None
        wanted = self.world.answer(self.setup, job)
        if output.finish_reason == "error":
            assert self.num_struck or self.strike.has_struck, output.error
            assert "lanted" in str(output.error) or "a signal" in str(output.error), output.error
            num_tokens = len(output.token_ids)
            assert list(output.token_ids) == list(wanted.token_ids)[:num_tokens]
            return
        assert list(output.token_ids) == list(wanted.token_ids)
        assert (output.text, output.finish_reason) == (wanted.text, wanted.finish_reason)
        assert output.logprobs == wanted.logprobs
        assert output.prompt_logprobs == wanted.prompt_logprobs

    def _check_beginning(self, reading: Reading) -> None:
        wanted = self.world.answer(self.setup, reading.job)
        assert reading.tokens == list(wanted.token_ids)[: len(reading.tokens)]
        assert wanted.text.startswith(reading.text)

    @contextmanager
    def _may_be_struck(self) -> Iterator[None]:
        try:
            yield
        except AssertionError:
            raise
        except BaseException as error:
            self._want_planted(error)

    def _want_planted(self, error: BaseException) -> None:
        """Every exception comes out as it was raised."""
        if not (self.strike.has_struck and isinstance(error, KINDS)):
            raise error


@contextmanager
def world_warnings() -> Iterator[None]:
    """What is struck in a finalizer, or as a request is released, is said and harms nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


ACTIONS: Sequence[str] = (
    *["open"] * 4, *["read"] * 6, *["generate"] * 3, "close", "drop", "drop", "throw", "score",
    "forget", "refuse", "thread", "coroutines",
)  # fmt: skip
