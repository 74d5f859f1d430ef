"""Who runs the engine: threads, signal handlers, finalizers, forks; and how all of it ends."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.errors import PilotfishError, StateError
from pilotfish.kernels.native.library import why_not
from pilotfish.testing import save_tiny
from pilotfish.testing.checkpoints import examples_of
from support import forked
from support.toy_model import ToyModel, naive_answer, toy_registry, write_toy_checkpoint

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PROMPT, OTHER = [97, 98, 99], [100, 98]


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(str(write_toy_checkpoint(tmp_path)), registry=toy_registry()) as llm:
        yield llm


@pytest.fixture
def within_a_pass(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """What is put here is done once, in the midst of the next pass."""
    execute, work = ToyModel.execute, list[Callable[[], Any]]()

    def call(self: ToyModel, inputs: Any) -> Any:
        found = execute(self, inputs)
        while work:
            work.pop()()
        return found

    monkeypatch.setattr(ToyModel, "execute", call)
    yield work
    assert not work, "no pass ran"


def is_idle(llm: LLM) -> bool:
    state = llm.engine.runner.state
    state.check()
    return not llm.engine.scheduler.requests and state.num_available_pages == state.num_pages


def begun_and_dropped(llm: LLM) -> None:
    """A stream that only the collector finds."""
    cycle: list[Any] = [llm.stream(PROMPT, PARAMS)]
    cycle.append(cycle)
    next(cycle[0])


def test_a_stream_collected_within_a_pass_disturbs_nobody(
    llm: LLM, within_a_pass: list[Callable[[], Any]]
) -> None:
    gc.disable()
    try:
        begun_and_dropped(llm)
        within_a_pass.append(gc.collect)
        outputs = llm.generate([PROMPT, OTHER], PARAMS)
    finally:
        gc.enable()
    for prompt, output in zip((PROMPT, OTHER), outputs, strict=True):
        assert list(output.token_ids) == naive_answer(prompt, PARAMS)[0]
    assert is_idle(llm)


def test_a_stream_dropped_while_another_thread_runs_waits_for_nobody(
    llm: LLM, within_a_pass: list[Callable[[], Any]]
) -> None:
    stream = llm.stream(PROMPT, PARAMS)
    next(stream)

    def close_elsewhere() -> None:
        thread = threading.Thread(target=stream.close)  # type: ignore[attr-defined]
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for the pass that waits for it"

    within_a_pass.append(close_elsewhere)
    assert list(llm.generate(OTHER, PARAMS)[0].token_ids) == naive_answer(OTHER, PARAMS)[0]
    assert is_idle(llm)


def test_a_call_within_a_pass_is_refused_and_disturbs_nobody(
    llm: LLM, within_a_pass: list[Callable[[], Any]]
) -> None:
    def calls() -> None:
        for call in (
            lambda: llm.generate(OTHER, PARAMS),
            lambda: next(llm.stream(OTHER, PARAMS)),
            lambda: llm.score(OTHER),
            llm.forget_cached_prefixes,
        ):
            with pytest.raises(StateError, match="within one of its own calls"):
                call()

    within_a_pass.append(calls)
    assert list(llm.generate(PROMPT, PARAMS)[0].token_ids) == naive_answer(PROMPT, PARAMS)[0]
    assert is_idle(llm)


def test_closing_within_a_pass_ends_all_after_it(
    llm: LLM, within_a_pass: list[Callable[[], Any]]
) -> None:
    stream = llm.stream(OTHER, PARAMS)
    first = next(stream)
    state = llm.engine.runner.state
    within_a_pass.append(llm.close)
    (output,) = llm.generate([PROMPT], PARAMS)
    assert output.finish_reason == "abort"
    assert list(output.token_ids) == naive_answer(PROMPT, PARAMS)[0][: len(output.token_ids)]
    rest = list(stream)
    assert rest[-1].finish_reason == "abort"
    told = [token for delta in (first, *rest) for token in delta.token_ids]
    assert told == naive_answer(OTHER, PARAMS)[0][: len(told)]
    assert state.num_available_pages == state.num_pages
    with pytest.raises(PilotfishError, match="closed"):
        llm.generate(PROMPT, PARAMS)


def test_closing_between_passes_ends_all(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.engine.progress.Progress.update", lambda *_: llm.close())
    outputs = llm.generate([PROMPT, OTHER], PARAMS)
    assert [output.finish_reason for output in outputs] == ["abort", "abort"]


@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_a_call_between_two_passes_of_another_costs_neither_its_answer(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """As of a signal handler: the requests that wait may end in the passes of the call within."""
    found, num_passes = list[list[int]](), count(1)
    longer = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    def update(*_: object) -> None:
        number = next(num_passes)
        if number == 1:
            if verb == "generate":
                found.append(list(llm.generate(OTHER, longer)[0].token_ids))
            else:
                found.append([t for delta in llm.stream(OTHER, longer) for t in delta.token_ids])
        assert number < 1000, "it waits for what has ended"

    monkeypatch.setattr("pilotfish.engine.progress.Progress.update", update)
    (output,) = llm.generate([PROMPT], PARAMS)
    assert list(output.token_ids) == naive_answer(PROMPT, PARAMS)[0]
    assert found == [naive_answer(OTHER, longer)[0]]
    assert is_idle(llm)


@pytest.mark.parametrize("verb", ["generate", "stream", "score"])
def test_closing_from_another_thread_ends_what_runs(
    llm: LLM, within_a_pass: list[Callable[[], Any]], verb: str
) -> None:
    """The thread that closes waits for the pass, and the pass's caller hears of the end."""
    threads: list[threading.Thread] = []

    def close_elsewhere() -> None:
        threads.append(threading.Thread(target=llm.close))
        threads[0].start()
        while not llm._turns._is_closing:
            pass

    within_a_pass.append(close_elsewhere)
    if verb == "score":
        assert llm.score([97] * 60).shape[0] == 60  # one pass: its answer is whole

    elif verb == "generate":
        assert llm.generate([PROMPT], PARAMS)[0].finish_reason == "abort"
    else:
        assert list(llm.stream(PROMPT, PARAMS))[-1].finish_reason == "abort"
    threads[0].join(60)
    assert not threads[0].is_alive()


def test_a_stream_that_had_not_begun_says_that_the_llm_is_closed(llm: LLM) -> None:
    stream = llm.stream(PROMPT, PARAMS)
    llm.close()
    with pytest.raises(PilotfishError, match="closed"):
        next(stream)


def test_an_llm_that_is_dropped_frees_its_model_without_the_collector(tmp_path: Path) -> None:
    llm = LLM(str(write_toy_checkpoint(tmp_path)), registry=toy_registry())
    llm.generate(PROMPT, PARAMS)
    model = weakref.ref(llm.engine.runner.model)
    gc.disable()
    try:
        del llm
        assert model() is None
    finally:
        gc.enable()


def test_threads_that_close_at_once(llm: LLM) -> None:
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(llm.generate, [PROMPT, OTHER], PARAMS)
        for closing in [pool.submit(llm.close) for _ in range(3)]:
            closing.result(60)
        with suppress(PilotfishError):  # closed before it began
            assert {output.finish_reason for output in running.result(60)} <= {"abort", "length"}


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_fork_whose_passes_would_never_end_is_told_to_make_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    """With one thread a forked process has all that a pass needs."""
    path = str(write_toy_checkpoint(tmp_path))
    llm = LLM(path, registry=toy_registry(), backend="torch")
    begun = llm.stream(PROMPT, PARAMS)
    next(begun)
    number = os.getpid()
    monkeypatch.setattr("pilotfish.engine.turns.os.getpid", lambda: number + 1)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        if num_threads == 1:
            assert llm.generate(PROMPT, PARAMS)[0].finish_reason == "length"
            return
        for call in (
            lambda: llm.generate(PROMPT),
            lambda: llm.stream(PROMPT),
            lambda: next(begun),  # refused before a pass
        ):
            with pytest.raises(PilotfishError, match=r"fork of it.*'spawn' or 'forkserver'"):
                call()
    finally:
        torch.set_num_threads(before)
        monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_that_lacks_the_thread_whose_turn_it_was_goes_on(
    llm: LLM, within_a_pass: list[Callable[[], Any]]
) -> None:
    stream = llm.stream(PROMPT, PARAMS)
    told, wanted = list(next(stream).token_ids), naive_answer(PROMPT, PARAMS)[0]
    codes: list[int] = []

    def fork() -> None:
        number = os.fork()
        if number == 0:
            signal.alarm(60)  # ends it where it waits for ever
            code = 1
            try:
                right = (
                    list(llm.generate(OTHER, PARAMS)[0].token_ids) == naive_answer(OTHER, PARAMS)[0]
                )
                told.extend(token for delta in stream for token in delta.token_ids)
                code = 0 if right and told == wanted and is_idle(llm) else 2
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))

    def fork_elsewhere() -> None:
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    within_a_pass.append(fork_elsewhere)
    assert list(llm.generate(PROMPT, PARAMS)[0].token_ids) == wanted
    told += [token for delta in stream for token in delta.token_ids]
    assert (told, codes) == (wanted, [0])


FORKS = """
import multiprocessing, sys, torch
from pilotfish import LLM, SamplingParams
torch.set_num_threads(2)
llm = LLM(sys.argv[1], backend=sys.argv[2])
wanted = llm.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=4))[0].token_ids
def child(queue):
    try:
        found = llm.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=4))
        queue.put(found[0].token_ids == wanted)
    except Exception as error:
        queue.put(str(error))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
print(queue.get(timeout=120))
process.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_real_fork(tiny_checkpoint: Path, backend: str) -> None:
    if backend == "native" and why_not():
        pytest.skip("there are no native kernels")
    done = forked.run("-c", FORKS, str(tiny_checkpoint), backend)
    assert ("True" if backend == "native" else "this is a fork of it") in done.stdout, done.stderr


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Lfm2ForCausalLM"])
def test_a_model_loaded_in_inference_mode_runs_outside_it(
    architecture: str, tmp_path: Path
) -> None:
    registry = load_registry()
    example = next(iter(examples_of(architecture, registry).configs))
    path = str(save_tiny(architecture, example, tmp_path, registry))
    with LLM(path) as llm:
        wanted = llm.generate([5, 6, 7] * 7, PARAMS)[0].token_ids
    with torch.inference_mode():
        llm = LLM(path)
    assert llm.generate([5, 6, 7] * 7, PARAMS)[0].token_ids == wanted
    assert not llm.score([1, 2, 3]).is_inference(), "the caller may go on with it"
    llm.close()
