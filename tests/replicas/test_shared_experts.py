"""An LLM of replicas that share experts, all in processes: one device's texts, whoever is idle."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from parallel.test_bits import tiny
from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.errors import ConfigError, RankError
from pilotfish.replicas.dispatcher import Dispatcher
from ranks.left import listening_ports, shared_memory

PROMPTS = [[1, 2, 3], [4, 5], [6] * 9, [7, 8, 9, 10] * 3, [11], [12, 1, 2]]
PARAMS = [
    SamplingParams(temperature=0.8, seed=seed, max_tokens=6 + 5 * seed, ignore_eos=True)
    for seed in range(len(PROMPTS))
]
LONG = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
BACK_S = 120.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("DeepseekV3ForCausalLM", tmp_path_factory.mktemp("shared"))


def load(checkpoint: Path, **options: Any) -> LLM:
    cache = CacheConfig(page_size_tokens=4, num_pages=200)
    return LLM(str(checkpoint), device="cpu", cache=cache, **{"rank_timeout": 30, **options})


def texts(llm: LLM) -> list[list[int]]:
    return [[*output.token_ids] for output in llm.generate(PROMPTS, PARAMS)]


def dispatcher(llm: LLM) -> Dispatcher:
    found: Any = llm.engine.scheduler
    assert isinstance(found, Dispatcher)
    return found


@pytest.fixture(scope="module")
def two(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint, data_parallel=2, expert_parallel=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> list[list[int]]:
    with load(checkpoint) as llm:
        return texts(llm)


def test_texts_are_those_of_one_device(two: LLM, wanted: list[list[int]]) -> None:
    """Of many requests, and of one, while the other replica has none; and after all have left."""
    assert texts(two) == wanted
    for prompt, params, text in zip(PROMPTS, PARAMS, wanted, strict=True):
        assert [*two.generate([prompt], params)[0].token_ids] == text
    assert texts(two) == wanted


def test_a_stream_that_is_closed_leaves_the_others_right(two: LLM, wanted: list[list[int]]) -> None:
    stream = two.stream([5, 6], LONG)
    next(stream)
    stream.close()
    assert texts(two) == wanted
    logits = two.score([1, 2, 3, 4])
    assert logits.shape[0] == 4


@pytest.mark.slow
def test_one_that_is_told_to_close_takes_part_until_all_have_left(checkpoint: Path) -> None:
    with load(checkpoint, data_parallel=2, expert_parallel=2) as llm:
        leads = [replica.lead for replica in dispatcher(llm).replicas]
        stream = llm.stream([5, 6], LONG)  # on the first one
        next(stream)
        leads[1].ask_to_close()
        assert [*stream][-1].finish_reason == "length"
    assert [lead.has_closed for lead in leads] == [True, True]


@pytest.mark.slow
def test_closing_in_the_midst_of_rounds_is_polite(checkpoint: Path) -> None:
    with load(checkpoint, data_parallel=2, expert_parallel=2) as llm:
        leads = [replica.lead for replica in dispatcher(llm).replicas]
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(llm.generate, PROMPTS[:3], LONG)
            wait_until(lambda: any(one.num_computed > 20 for one in dispatcher(llm).requests))
            llm.close()
            assert "abort" in {output.finish_reason for output in work.result()}
    assert [lead.has_closed for lead in leads] == [True, True]


@pytest.mark.slow
def test_two_ranks_each(checkpoint: Path) -> None:
    with load(checkpoint, reduction_slices=2) as llm:
        one = texts(llm)
    options = {"data_parallel": 2, "tensor_parallel": 2, "expert_parallel": 4}
    with load(checkpoint, **options) as llm:
        assert texts(llm) == one
        assert texts(llm) == one


@pytest.mark.slow
def test_two_pairs_of_four_replicas(checkpoint: Path, wanted: list[list[int]]) -> None:
    """A pair has all experts, and goes on without the other one."""
    with load(checkpoint, data_parallel=4, expert_parallel=2) as llm:
        assert texts(llm) == wanted
        os.kill(dispatcher(llm).pids[0], signal.SIGKILL)
        wait_until(lambda: not dispatcher(llm).replicas[0].is_ready)
        with pytest.warns(match="replica 0 of 4"):
            assert texts(llm) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ngram", "small_model"])
def test_drafts_are_each_replicas_own(
    checkpoint: Path, wanted: list[list[int]], method: str
) -> None:
    """Their passes are no rounds, also those of a model with experts."""
    draft = str(checkpoint) if method == "small_model" else None
    options = {"data_parallel": 2, "expert_parallel": 2, "speculative": method, "draft": draft}
    with load(checkpoint, **options) as llm:
        assert texts(llm) == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:replica . of 2")
def test_one_that_is_killed_takes_the_others_along_and_all_come_back(
    checkpoint: Path, wanted: list[list[int]]
) -> None:
    """Without its experts there is no pass; the requests of both end with an error."""
    before = listening_ports(), shared_memory()
    with load(checkpoint, data_parallel=2, expert_parallel=2) as llm:
        pids = dispatcher(llm).pids
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(llm.generate, PROMPTS * 3, LONG)
            wait_until(lambda: any(one.num_computed > 20 for one in dispatcher(llm).requests))
            os.kill(pids[1], signal.SIGKILL)
            errors = {output.error for output in work.result()}
        first, second = sorted(map(str, errors))
        assert re.match("replica 0 of 2 (lost ranks of another one|was given up with one)", first)
        assert second.startswith("replica 1 of 2: rank 0 of 1 was ended by SIGKILL")
        with pytest.raises(RankError, match=r"no replica serves now .*: ask later"):
            llm.generate(PROMPTS[:1], LONG)
        wait_until(lambda: all(one.is_ready for one in dispatcher(llm).replicas))
        assert not {*pids} & {*dispatcher(llm).pids}
        assert texts(llm) == wanted
        pids = dispatcher(llm).pids
        sleep(0.5)  # by then, most often, the other one is in no round, and does not see it
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: dispatcher(llm).pids[0] != pids[0])
        wait_until(lambda: all(one.is_ready for one in dispatcher(llm).replicas))
        assert not {*pids} & {*dispatcher(llm).pids}, "only new ones meet"
        assert texts(llm) == wanted
    assert (listening_ports(), shared_memory()) == before


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = monotonic() + BACK_S
    while not is_so():
        assert monotonic() < deadline
        sleep(0.02)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data_parallel": 3, "expert_parallel": 3}, "8 experts over 3 ranks"),
        ({"data_parallel": 2, "expert_parallel": 4}, "wanted a divisor of 1, or, over replicas"),
    ],
)
def test_what_replicas_cannot_share_is_refused_before_any_is_started(
    checkpoint: Path, options: dict[str, int], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load(checkpoint, **options)
