"""An LLM whose ranks fail, at every stage and in every way; and one that goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pilotfish import LLM, CacheConfig, SamplingParams, load_registry
from pilotfish.errors import PilotfishError, RankError
from pilotfish.testing.checkpoints import save_tiny
from ranks.faulty import ARCHITECTURE, VARIABLE, registry
from ranks.left import are_gone, listening_ports, shared_memory

REGISTRY = registry()
QUOTING = [1, 2, 3, 4] * 5
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SAID = {
    "raise": r"rank 1 of 2 raised ValueError in {}: planted",
    "SIGKILL": r"rank 1 of 2 was ended by SIGKILL in {}",
    "SIGSTOP": r"rank 1 of 2 did not answer for 8 s \(rank_timeout\) in {}",
}
STAGES = ("load", "prefill", "decode", "verify")
USUAL = {"load": "raise", "prefill": "raise", "decode": "SIGKILL", "verify": "raise"}
CASES = [
    pytest.param(stage, how, marks=[] if USUAL[stage] == how else [pytest.mark.slow])
    for stage in STAGES
    for how in SAID
]
"""A process starts for each, which takes seconds."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    return save_tiny(ARCHITECTURE, "plain", folder, load_registry())


def load(checkpoint: Path, **options: Any) -> LLM:
    return LLM(
        str(checkpoint),
        registry=REGISTRY,
        device="cpu",
        **{"tensor_parallel": 2, "rank_timeout": 60, **options},
        cache=CacheConfig(page_size_tokens=4, num_pages=64),
    )


def pids_of(llm: LLM) -> tuple[int, ...]:
    found: tuple[int, ...] = llm.engine.runner.model.ranks.pids  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("stage", "how"), CASES)
def test_a_rank_that_fails_is_named_and_nothing_is_left(
    checkpoint: Path, stage: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{stage} {how}")
    before = listening_ports(), shared_memory()
    wanted = SAID[how].format("loading" if stage == "load" else "execute")
    options: dict[str, Any] = {"rank_timeout": 8} if how == "SIGSTOP" else {}
    if stage == "load":
        with pytest.raises(RankError, match=wanted):
            load(checkpoint, **options)
        assert (listening_ports(), shared_memory()) == before
        return
    with load(checkpoint, speculative="ngram" if stage == "verify" else None, **options) as llm:
        pids = pids_of(llm)
        start = monotonic()
        with pytest.raises(RankError, match=wanted):
            llm.generate([QUOTING, [5, 6]], GREEDY)
        assert monotonic() - start < 25
        assert are_gone(pids)
        with pytest.raises(RankError, match=wanted):  # at once, and of everybody
            llm.generate([QUOTING], GREEDY)
    assert (listening_ports(), shared_memory()) == before


@pytest.fixture(scope="module")
def two(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint) as llm:
        yield llm


def test_ctrl_c_waits_for_the_pass_and_the_llm_goes_on(two: LLM) -> None:
    (wanted,) = two.generate([QUOTING], GREEDY)
    long = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        two.generate([QUOTING] * 200, long)
    timer.join()
    (again,) = two.generate([QUOTING], GREEDY)
    assert again.token_ids == wanted.token_ids


def test_streams_may_be_dropped_and_threads_may_share_it(two: LLM) -> None:
    (wanted,) = two.generate([QUOTING], GREEDY)
    stream = two.stream(QUOTING, GREEDY)
    next(stream)
    del stream
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(two.generate([QUOTING], GREEDY)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.token_ids for out in found] == [wanted.token_ids] * 3


def test_scores_are_those_of_one_device(two: LLM, checkpoint: Path) -> None:
    with LLM(str(checkpoint), registry=REGISTRY, device="cpu", reduction_slices=2) as one:
        assert two.score(QUOTING).equal(one.score(QUOTING))


def test_a_closed_llm_has_no_ranks(checkpoint: Path) -> None:
    llm = load(checkpoint)
    pids = pids_of(llm)
    llm.close()
    assert are_gone(pids)
    with pytest.raises(PilotfishError, match="closed"):
        llm.generate([QUOTING], GREEDY)
