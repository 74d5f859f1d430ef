"""Drafts that processes share: texts and counters of one device, failures, interrupts."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig
from pilotfish.errors import RankError
from ranks import faulty
from ranks.left import are_gone
from ranks.test_llm_ranks import SAID, pids_of
from speculation.pairs import PARAMS, PROMPTS, Shelf, registry

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("drafts"), registry())


def answers(llm: LLM) -> list[Any]:
    outs = llm.generate(PROMPTS, PARAMS)
    return [(list(out.token_ids), out.logprobs, out.speculative) for out in outs]


SLOW = pytest.mark.slow
"""Processes start for each, which takes seconds."""
DRAFTERS = ["eagle-3", *(pytest.param(name, marks=SLOW) for name in ("eagle-1", "dflash"))]
DRAFTERS.append(pytest.param("small model", marks=SLOW))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_two_processes_draft_as_one_device(shelf: Shelf, drafter: str) -> None:
    """And an interrupt waits for the end of the pass, so that they go on together."""
    path = shelf.target("LlamaForCausalLM", "plain")
    with shelf.llm(path, drafter, "float32", reduction_slices=2) as one:
        wanted = answers(one)
    with shelf.llm(path, drafter, "float32", tensor_parallel=2, rank_timeout=60) as llm:
        assert answers(llm) == wanted
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS * 60, LONG)
        timer.join()
        outs = llm.generate(PROMPTS, PARAMS)
        assert [list(out.token_ids) for out in outs] == [tokens for tokens, *_ in wanted]
        pids = pids_of(llm)
    assert are_gone(pids)


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("raise", marks=SLOW)])
def test_a_rank_that_fails_in_a_draft_is_named(
    shelf: Shelf, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(faulty.VARIABLE, f"draft {how}")
    llm = LLM(
        str(shelf.target(faulty.ARCHITECTURE, "plain")),
        draft=str(shelf.draft("eagle-3")),
        speculative=SpeculativeConfig(method=faulty.FAULTY_METHOD, width=3),
        registry=faulty.registry(),
        device="cpu",
        tensor_parallel=2,
        rank_timeout=60,
        cache=CacheConfig(page_size_tokens=4, num_pages=64),
    )
    with llm:
        pids, wanted = pids_of(llm), SAID[how].format("draft")
        for _ in range(2):  # at once, the second time
            with pytest.raises(RankError, match=wanted):
                llm.generate(PROMPTS, GREEDY)
        assert are_gone(pids)
