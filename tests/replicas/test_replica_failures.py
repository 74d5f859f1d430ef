"""Replicas that fail in every way: their requests end, the others go on, and they come back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from warnings import catch_warnings, simplefilter

import psutil
import pytest

from pilotfish import LLM, CacheConfig, SamplingParams, load_registry
from pilotfish.errors import RankError, WeightsError
from pilotfish.replicas.dispatcher import Dispatcher
from pilotfish.testing.checkpoints import save_tiny
from ranks.left import are_gone, listening_ports, shared_memory
from replicas.faulty import ARCHITECTURE, POISON, VARIABLE, fault, registry

REGISTRY = registry()
PROMPTS = [[1, 2, 3], [4, 5], [6] * 9, [7, 8, 9, 10] * 3]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=110, ignore_eos=True)
BACK_S = 120.0
"""Within which one is loaded again; much for a busy machine."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


def load(checkpoint: Path, **options: Any) -> LLM:
    return LLM(
        str(checkpoint),
        registry=REGISTRY,
        device="cpu",
        **{
            "data_parallel": 2,
            "rank_timeout": 30,
            "cache": CacheConfig(page_size_tokens=4, num_pages=64),
            **options,
        },
    )


def dispatcher(llm: LLM) -> Dispatcher:
    found: Any = llm.engine.scheduler
    assert isinstance(found, Dispatcher)
    return found


def serving(llm: LLM) -> list[bool]:
    return [replica.is_ready for replica in dispatcher(llm).replicas]


def wait_for(llm: LLM, wanted: list[bool]) -> None:
    deadline = monotonic() + BACK_S
    while serving(llm) != wanted:
        assert monotonic() < deadline, [one.failure for one in dispatcher(llm).replicas]
        sleep(0.05)


class InBackground(threading.Thread):
    """Many requests, while something happens."""

    def __init__(self, llm: LLM, count: int = 40) -> None:
        super().__init__()
        self.llm, self.count = llm, count
        self.outputs: list[Any] = []
        self.start()
        sleep(0.3)

    def run(self) -> None:
        self.outputs = self.llm.generate(PROMPTS * self.count, LONG)

    def ended(self) -> tuple[list[Any], set[str]]:
        """Those that were answered, and the errors of the others."""
        self.join()
        good = [output for output in self.outputs if output.finish_reason == "length"]
        bad = {output.error for output in self.outputs if output.finish_reason == "error"}
        return good, bad


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> Iterator[list[list[int]]]:
    """Of one replica."""
    with load(checkpoint, data_parallel=1) as llm:
        yield [[*output.token_ids] for output in llm.generate(PROMPTS, LONG)]


@pytest.mark.filterwarnings("ignore:replica 1 of 2")
def test_one_that_is_killed_costs_its_requests_and_comes_back(
    checkpoint: Path, wanted: list[list[int]]
) -> None:
    before = listening_ports(), shared_memory()
    with load(checkpoint) as llm:
        pids = dispatcher(llm).pids
        work = InBackground(llm)
        begun = monotonic()
        os.kill(pids[1], signal.SIGKILL)
        good, bad = work.ended()
        assert len(good) > len(work.outputs) // 3
        assert all([*out.token_ids] == wanted[out.index % len(PROMPTS)] for out in good)
        assert bad == {
            "replica 1 of 2: rank 0 of 1 was ended by SIGKILL in serving; its requests have ended: "
            "ask again, and another one answers"
        }
        again = [[*output.token_ids] for output in llm.generate(PROMPTS, LONG)]
        assert again == wanted
        assert monotonic() - begun < BACK_S
        wait_for(llm, [True, True])
        assert dispatcher(llm).pids[0] == pids[0]
        assert dispatcher(llm).pids[1] != pids[1]
        both = llm.generate(PROMPTS * 4, LONG)
        assert [[*output.token_ids] for output in both] == wanted * 4
        assert all(load.names for load in dispatcher(llm).router.loads)
        pids += dispatcher(llm).pids
    assert are_gone(pids)
    assert (listening_ports(), shared_memory()) == before


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_that_hangs_is_given_up_and_said_once(checkpoint: Path, ranks: int) -> None:
    """Its last rank does."""
    limit_s = 8 if ranks == 1 else 20  # of loading too, which more processes do at once
    with load(checkpoint, rank_timeout=limit_s, tensor_parallel=ranks) as llm:
        lead = psutil.Process(dispatcher(llm).pids[0])
        stopped = [lead, *lead.children()][ranks - 1].pid
        os.kill(stopped, signal.SIGSTOP)
        with pytest.warns(match=f"replica 0 of 2: rank {ranks - 1} of {ranks} did not") as warned:
            outputs = llm.generate(PROMPTS, GREEDY)
        assert len([one for one in warned if "replica 0" in str(one.message)]) == 1
        with catch_warnings():
            simplefilter("error")
            llm.generate(PROMPTS, GREEDY)
        assert "it is started again, and requests go to the others" in str(warned[0].message)
        said = [str(output.error) for output in outputs if output.finish_reason == "error"]
        assert len(said) == 2
        doing = "serving" if ranks == 1 else "execute"
        assert {one.partition(";")[0] for one in said} == {
            f"replica 0 of 2: rank {ranks - 1} of {ranks} did not answer for {limit_s} s "
            f"(rank_timeout) in {doing}"
        }
        assert are_gone([stopped])


@pytest.mark.filterwarnings("ignore:replica 1 of 2")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_that_raises_is_named_with_its_rank(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    monkeypatch.setenv(VARIABLE, fault(ranks - 1, "poison", "raise"))
    with load(checkpoint, tensor_parallel=ranks) as llm:
        outputs = llm.generate([[1, 2], [POISON, 3], [4, 5]], GREEDY)
        assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
        assert str(outputs[1].error).startswith(
            f"replica 1 of 2: rank {ranks - 1} of {ranks} raised ValueError in "
        )
        assert "planted; its requests have ended" in str(outputs[1].error)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:replica")
def test_one_that_fails_again_while_it_loads_stays_lost_and_the_last_is_the_end(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(checkpoint) as llm:
        monkeypatch.setenv(VARIABLE, fault(0, "load", "raise"))
        os.kill(dispatcher(llm).pids[1], signal.SIGKILL)
        wait_for(llm, [True, False])
        replica = dispatcher(llm).replicas[1]
        deadline = monotonic() + BACK_S
        while replica.comes_back and monotonic() < deadline:
            sleep(0.05)
        with pytest.warns(match="raised ValueError in loading: planted; it stays lost"):
            llm.generate(PROMPTS, GREEDY)
        assert serving(llm) == [True, False]
        work = InBackground(llm, count=60)
        os.kill(dispatcher(llm).pids[0], signal.SIGKILL)
        good, bad = work.ended()
        assert bad
        assert len(good) + sum(out.finish_reason == "error" for out in work.outputs) == 240
        with pytest.raises(RankError, match=r"no replica serves now .*replica 1 of 2.*ask later"):
            llm.generate(PROMPTS, GREEDY)
        deadline = monotonic() + BACK_S
        while dispatcher(llm).replicas[0].comes_back and monotonic() < deadline:
            sleep(0.05)
        with pytest.raises(RankError, match=r"no replica is left .*replica 1 of 2.*planted"):
            llm.generate(PROMPTS, GREEDY)


@pytest.mark.parametrize("how", ["raise", pytest.param("exit", marks=pytest.mark.slow)])
def test_one_that_fails_at_first_is_the_end_of_all(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = listening_ports(), shared_memory()
    monkeypatch.setenv(VARIABLE, fault(0, "load", how))
    said = "raised ValueError in loading: planted" if how == "raise" else "ended with exit code 3"
    with pytest.raises(RankError, match=rf"replica \d of 2: rank 0 of 1 {said}"):
        load(checkpoint)
    assert (listening_ports(), shared_memory()) == before


@pytest.mark.slow
def test_what_a_user_can_mend_is_raised_as_by_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, fault(0, "load", "user"))
    with pytest.raises(WeightsError, match=r"^planted; wanted other weights$"):
        load(checkpoint)
