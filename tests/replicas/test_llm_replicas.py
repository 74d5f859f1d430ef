"""An LLM of two replicas, each in processes of its own: the same as of one, bit for bit."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from kimi_k25.towers import IMAGE, hf_config, hf_model, image, save_published
from pilotfish import LLM, CacheConfig, SamplingParams, load_registry
from pilotfish.engine.outputs import RequestOutput
from pilotfish.errors import ConfigError, PilotfishError, RequestError
from pilotfish.replicas.dispatcher import Dispatcher
from pilotfish.replicas.lead import Lead
from pilotfish.replicas.tasks import NEWS
from pilotfish.testing.checkpoints import save_tiny
from ranks.left import are_gone, listening_ports, num_threads, shared_memory
from replicas.faulty import ARCHITECTURE

PROMPTS = [[1, 2, 3], [4, 5], [6] * 9, [7, 8, 9, 10] * 3, [11], [12, 1, 2]]
PARAMS = [
    SamplingParams(temperature=0.8, seed=seed, max_tokens=10 + seed, ignore_eos=True)
    for seed in range(len(PROMPTS))
]
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


def load(checkpoint: Path, **options: Any) -> LLM:
    cache = CacheConfig(page_size_tokens=4, num_pages=64)
    return LLM(str(checkpoint), device="cpu", **{"rank_timeout": 30, "cache": cache, **options})


@pytest.fixture(scope="module")
def one(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint) as llm:
        yield llm


@pytest.fixture(scope="module")
def two(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint, data_parallel=2) as llm:
        yield llm


def dispatcher(llm: LLM) -> Dispatcher:
    found: Any = llm.engine.scheduler
    assert isinstance(found, Dispatcher)
    return found


def facts(output: RequestOutput) -> Any:
    """All of it but its time, and its place in the call."""
    found = output.to_json()
    del found["timing"], found["index"]
    for other in found.get("others", ()):
        del other["timing"], other["index"]
    return found


def same(one: LLM, two: LLM, prompts: Any, params: Any) -> None:
    wanted = [facts(output) for output in one.generate(prompts, params)]
    assert [facts(output) for output in two.generate(prompts, params)] == wanted


def requests_of(llm: LLM) -> list[int]:
    return [load.num_requests for load in dispatcher(llm).router.loads]


def is_idle(llm: LLM) -> bool:
    return requests_of(llm) == [0, 0] and not dispatcher(llm).requests


# The same answers


def test_texts_are_those_of_one_and_both_compute_them(one: LLM, two: LLM) -> None:
    same(one, two, PROMPTS, PARAMS)
    assert all(load.names for load in dispatcher(two).router.loads)
    assert is_idle(two)


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 3},
        {"prompt_logprobs": 2},
        {"n": 3},
        {"presence_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {3: 4.0, 5: -2.5}, "suppress_tokens": [7]},
        {"stop_token_ids": [3, 9, 14, 21], "min_tokens": 4},
        {"temperature": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_whatever_is_asked_for_is_answered_alike(
    one: LLM, two: LLM, options: dict[str, Any]
) -> None:
    params = SamplingParams(**{"temperature": 0.9, "seed": 5, "max_tokens": 12, **options})
    same(one, two, PROMPTS, params)


def test_scores_are_equal(one: LLM, two: LLM) -> None:
    texts = [[1, 2, 3, 4, 5], [9] * 50, [3]]
    for wanted, got in zip(one.score_many(texts), two.score_many(texts), strict=True):
        assert got.equal(wanted)


def test_streams_have_the_same_pieces(one: LLM, two: LLM) -> None:
    for prompt, params in zip(PROMPTS, PARAMS, strict=True):
        wanted, got = [*one.stream(prompt, params)], [*two.stream(prompt, params)]
        assert [delta.token_ids for delta in got] == [delta.token_ids for delta in wanted]
        assert got[-1].output is not None
        assert wanted[-1].output is not None
        assert facts(got[-1].output) == facts(wanted[-1].output)


def test_coroutines_and_threads_may_share_it(one: LLM, two: LLM) -> None:
    wanted = [facts(output) for output in one.generate(PROMPTS, PARAMS)]

    async def all_at_once() -> list[Any]:
        asked = (two.agenerate(*each) for each in zip(PROMPTS, PARAMS, strict=True))
        return [facts(output) for (output,) in await asyncio.gather(*asked)]

    assert asyncio.run(all_at_once()) == wanted
    found: dict[int, Any] = {}

    def ask(place: int) -> None:
        (output,) = two.generate([PROMPTS[place]], PARAMS[place])
        found[place] = facts(output)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(PROMPTS))] == wanted


def test_what_is_refused_is_refused_here(two: LLM) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        two.generate([[]], PARAMS[0])
    refused, answered = two.generate([[1] * 200, [1]], PARAMS[0])
    assert "wanted at most 127" in str(refused.error)
    assert answered.finish_reason == "length"


@pytest.mark.slow
def test_replicas_of_several_ranks_with_drafts_give_the_same(checkpoint: Path) -> None:
    options: dict[str, Any] = {"speculative": "ngram", "max_batch_tokens": 16}
    prompts = [[1, 2, 3, 4] * 5, [5, 6] * 8, [7, 8, 9]]
    with load(checkpoint, reduction_slices=2, **options) as one:
        wanted = [facts(output) for output in one.generate(prompts, LONG)]
    with load(checkpoint, data_parallel=2, tensor_parallel=2, **options) as two:
        got = [facts(output) for output in two.generate(prompts, LONG)]
        assert [found["token_ids"] for found in got] == [found["token_ids"] for found in wanted]
        assert all(found["speculative"]["accepted"] for found in got)


@pytest.mark.slow
def test_texts_end_at_stop_strings() -> None:
    """Which are found where the text is made, when the replica has gone on already."""
    prompts = ["The capital of France is", "One, two,", "The sea is"]
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=24, stop=[" the", "in ", ","])
    with LLM("demo", max_length=128) as one, LLM("demo", max_length=128, data_parallel=2) as two:
        same(one, two, prompts, params)
        assert {out.finish_reason for out in two.generate(prompts, params)} == {"stop"}
        assert is_idle(two)


@pytest.mark.slow
def test_a_draft_model_drafts_on_every_replica(one: LLM, checkpoint: Path) -> None:
    options: dict[str, Any] = {"draft": str(checkpoint), "speculative": "small_model"}
    with load(checkpoint, data_parallel=2, **options) as two:
        outputs = two.generate(PROMPTS, PARAMS)
        wanted = one.generate(PROMPTS, PARAMS)
        assert [out.token_ids for out in outputs] == [out.token_ids for out in wanted]
        assert all(out.speculative and out.speculative["accepted"] for out in outputs)


@pytest.mark.slow
def test_images_go_with_their_requests(tmp_path: Path) -> None:
    folder = save_published(hf_model(hf_config({}, {}), gain=1.7), tmp_path)
    first, second = image(16, 16), image(40, 24)
    prompts = [
        {"prompt": [3, 4, IMAGE, 5, IMAGE, 6, 7], "images": [first, second]},
        {"prompt": [IMAGE, 9], "images": [second]},
        [1, 2, 3],
    ]
    params = SamplingParams(temperature=0.7, seed=2, max_tokens=10, logprobs=1, ignore_eos=True)
    with load(folder) as one, load(folder, data_parallel=2) as two:
        for _ in range(2):  # the second time from cached prefixes
            same(one, two, prompts, params)


@pytest.mark.slow
def test_with_few_pages_replicas_preempt_and_say_so(checkpoint: Path) -> None:
    cache = CacheConfig(page_size_tokens=4, num_pages=20)
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=60, ignore_eos=True)
    with (
        load(checkpoint, cache=cache) as one,
        load(checkpoint, cache=cache, data_parallel=2) as two,
    ):
        same(one, two, PROMPTS, params)
        assert two.num_preemptions > 0


# Where requests go


def test_a_beginning_is_computed_once(two: LLM) -> None:
    two.forget_cached_prefixes()
    beginning, routed = [3, 1, 4, 1, 5, 9, 2, 6] * 4, dispatcher(two).router
    two.generate([beginning], PARAMS[0])
    held = [load.names for load in routed.loads]
    assert sorted(map(bool, held)) == [False, True]
    owner = [bool(one) for one in held].index(True)
    two.generate([[*beginning, 8, 8]], PARAMS[0])
    assert not routed.loads[1 - owner].names
    two.forget_cached_prefixes()
    assert not routed.loads[owner].names


# Those who leave


def test_ctrl_c_aborts_and_the_llm_goes_on(
    one: LLM, two: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        two.generate(PROMPTS * 40, LONG)
    timer.join()
    assert is_idle(two)
    heard, hear = list[set[str]](), dispatcher(two).on_message

    def listening(lead: Lead, name: str, arguments: Any) -> None:
        if name == NEWS:
            heard.append({news.request_id for news in arguments[0]})
        hear(lead, name, arguments)

    monkeypatch.setattr(dispatcher(two), "on_message", listening)
    same(one, two, PROMPTS, PARAMS)
    last = max(int(name.rpartition("-")[2]) for names in heard for name in names)
    asked = {f"request-{last - back}" for back in range(len(PROMPTS))}
    # Messages are heard in order: who has begun with these has let all others go.
    assert all(names <= asked for names in heard if names & asked)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["begin", "end", "choose", "add", "finish", "_drop"])
def test_an_interrupt_within_a_call_leaves_the_books_right(
    one: LLM, two: LLM, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    all_of_them, count = dispatcher(two), [0]
    is_routing = name in {"begin", "end", "choose"}
    owner: Any = all_of_them.router if is_routing else all_of_them
    real = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        count[0] += 1
        made = real(*arguments) if after else None
        if count[0] == 3:
            raise KeyboardInterrupt
        return made if after else real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            two.generate(PROMPTS, PARAMS)
    assert is_idle(two)
    assert [load.num_tokens for load in all_of_them.router.loads] == [0, 0]
    same(one, two, PROMPTS, PARAMS)


def test_a_stream_that_is_dropped_is_aborted(two: LLM) -> None:
    stream = two.stream(PROMPTS[0], LONG)
    next(stream)
    assert sum(requests_of(two)) == 1
    stream.close()
    assert is_idle(two)


def test_nothing_is_expected_of_a_replica_whose_answer_waits_for_a_slow_reader(two: LLM) -> None:
    stream, all_of_them = two.stream(PROMPTS[0], PARAMS[0]), dispatcher(two)
    next(stream)
    deadline = monotonic() + 10
    while any(all_of_them.is_waiting_for(one.lead) for one in all_of_them.replicas):
        assert monotonic() < deadline
        sleep(0.02)
    assert sum(requests_of(two)) == 1
    assert [*stream][-1].finish_reason == "length"
    assert is_idle(two)


def test_a_coroutine_that_is_cancelled_lets_go(two: LLM) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(two.agenerate(PROMPTS * 20, LONG))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    deadline = monotonic() + 5
    while not is_idle(two) and monotonic() < deadline:
        sleep(0.02)
        two.engine.tidy()
    assert is_idle(two)


def test_a_fork_is_refused_and_ends_nobody(one: LLM, two: LLM) -> None:
    pid = os.fork()
    if not pid:
        try:
            two.generate(PROMPTS, PARAMS)
        except PilotfishError as error:
            two.close()
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    same(one, two, PROMPTS, PARAMS)


# The end


def test_closing_ends_requests_and_leaves_nothing(checkpoint: Path) -> None:
    before = listening_ports(), shared_memory(), num_threads()
    llm = load(checkpoint, data_parallel=2)
    pids = dispatcher(llm).pids
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    found: list[RequestOutput] = []
    thread = threading.Thread(target=lambda: found.extend(llm.generate(PROMPTS * 10, LONG)))
    thread.start()
    sleep(0.5)
    llm.close()
    thread.join()
    assert {output.finish_reason for output in found} <= {"abort", "length"}
    assert any(output.finish_reason == "abort" for output in found)
    assert are_gone(pids)
    with pytest.raises(PilotfishError, match="closed"):
        llm.generate(PROMPTS, PARAMS)
    deadline = monotonic() + 5
    while num_threads() > before[2] and monotonic() < deadline:
        sleep(0.05)
    assert (listening_ports(), shared_memory()) == before[:2]
    assert num_threads() <= before[2]


@pytest.mark.slow
def test_one_that_is_dropped_is_closed(checkpoint: Path) -> None:
    llm = load(checkpoint, data_parallel=2)
    pids = dispatcher(llm).pids
    del llm
    gc.collect()
    assert are_gone(pids)


def test_what_does_not_fit_is_refused_by_name(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="data_parallel is 0; wanted"):
        load(checkpoint, data_parallel=0)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", **place}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun started 3 processes; wanted torchrun --nproc"):
        load(checkpoint, data_parallel=2)
