"""Coroutines: their answers, what they wait for, and what is left when they are cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from pilotfish import LLM, RequestOutput, SamplingParams
from pilotfish.errors import PilotfishError, RequestError
from support.toy_model import naive_answer, toy_registry, write_toy_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[97 + i, 98, 99] for i in range(5)]


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    made = LLM(str(write_toy_checkpoint(tmp_path)), registry=toy_registry())
    yield made
    made.close()
    settle(lambda: not [t for t in threading.enumerate() if t.name == "pilotfish-async"])


def settle(is_done: Any) -> None:
    """Waits for another thread."""
    for _ in range(1000):
        if is_done():
            return
        time.sleep(0.01)
    raise AssertionError("never came")


def naive(prompt: list[int]) -> list[int]:
    return naive_answer(prompt, GREEDY)[0]


async def read(llm: LLM, prompt: list[int]) -> RequestOutput:
    tokens: list[int] = []
    async for delta in llm.astream(prompt, GREEDY):
        tokens += delta.token_ids
        if delta.output is not None:
            assert tokens == list(delta.output.token_ids)
            return delta.output
    raise AssertionError("a stream without an end")


def test_coroutines_get_their_own_texts(llm: LLM) -> None:
    async def ask() -> list[RequestOutput]:
        streams = [read(llm, prompt) for prompt in PROMPTS]
        *outputs, listed = await asyncio.gather(*streams, llm.agenerate(PROMPTS, GREEDY))
        assert [output.index for output in listed] == list(range(len(PROMPTS)))
        return [*outputs, *listed]

    for prompt, output in zip([*PROMPTS, *PROMPTS], asyncio.run(ask()), strict=True):
        assert list(output.token_ids) == naive(prompt)
    settle(lambda: not llm.engine.has_work)


def test_they_run_in_one_batch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = llm.engine.runner.compute

    def compute(batch: Any) -> Any:
        sizes.append(len(batch))
        return real(batch)

    async def ask() -> None:
        await asyncio.gather(*(read(llm, prompt) for prompt in PROMPTS))

    monkeypatch.setattr(llm.engine.runner, "compute", compute)
    asyncio.run(ask())
    assert max(sizes) == len(PROMPTS)


def test_threads_and_coroutines_at_once(llm: LLM) -> None:
    async def ask() -> list[Any]:
        threads = [asyncio.to_thread(llm.generate, prompt, GREEDY) for prompt in PROMPTS]
        return await asyncio.gather(*threads, *(read(llm, prompt) for prompt in PROMPTS))

    found = asyncio.run(ask())
    for prompt, (by_thread,), by_stream in zip(PROMPTS, found[:5], found[5:], strict=True):
        assert list(by_thread.token_ids) == list(by_stream.token_ids) == naive(prompt)


def test_a_cancelled_coroutine_lets_its_requests_go(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=10_000, ignore_eos=True)

    async def ask() -> None:
        task = asyncio.create_task(llm.agenerate(PROMPTS[:2], long))
        other = asyncio.create_task(read(llm, PROMPTS[2]))
        assert list((await other).token_ids) == naive(PROMPTS[2])
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(settle, lambda: not llm.engine.has_work)

    asyncio.run(ask())


def test_a_stream_that_is_left_lets_its_request_go(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=10_000, ignore_eos=True)

    async def ask() -> None:
        async with aclosing(llm.astream(PROMPTS[0], long)) as stream:
            async for delta in stream:
                assert delta.token_ids
                break
        await asyncio.to_thread(settle, lambda: not llm.engine.has_work)

    asyncio.run(ask())


def test_a_refused_prompt_raises(llm: LLM) -> None:
    async def stream() -> None:
        async for _ in llm.astream([], GREEDY):
            raise AssertionError("an answer to nothing")

    for call in (stream(), llm.agenerate([[]], GREEDY)):
        with pytest.raises(RequestError):
            asyncio.run(call)


def test_what_breaks_a_pass_is_raised_where_it_is_waited_for(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Any) -> Any:
        raise MemoryError("the pass is broken")

    async def ask() -> list[Any]:
        return await asyncio.gather(
            read(llm, PROMPTS[0]), llm.agenerate(PROMPTS[1], GREEDY), return_exceptions=True
        )

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "compute", broken)
        for found in asyncio.run(ask()):
            assert isinstance(found, MemoryError)
    settle(lambda: not llm.engine.has_work)
    assert list(asyncio.run(read(llm, PROMPTS[0])).token_ids) == naive(PROMPTS[0])


def test_closing_ends_what_coroutines_wait_for(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=10_000, ignore_eos=True)

    async def ask() -> list[RequestOutput]:
        task = asyncio.create_task(llm.agenerate(PROMPTS[:2], long))
        await read(llm, PROMPTS[2])
        await asyncio.to_thread(llm.close)
        return await task

    assert [output.finish_reason for output in asyncio.run(ask())] == ["abort", "abort"]
    with pytest.raises(PilotfishError, match="closed"):
        asyncio.run(llm.agenerate(PROMPTS[0], GREEDY))


def test_several_event_loops(llm: LLM) -> None:
    found: dict[int, list[int]] = {}

    def run(number: int) -> None:
        found[number] = list(asyncio.run(read(llm, PROMPTS[number])).token_ids)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: naive(PROMPTS[number]) for number in range(5)}
