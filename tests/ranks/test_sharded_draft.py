"""ShardedDraft: which calls of a drafter go to all ranks, and what stays the first one's own."""

from __future__ import annotations

from typing import Any

import pytest

from parallel.thread_ranks import ranks_are_threads
from pilotfish import LLM, CacheConfig, SpeculativeConfig
from pilotfish.speculation.proposer import shared_calls_of
from pilotfish_eagle.model import EagleModel
from ranks import own_drafters
from ranks.own_drafters import Alone, Counting
from speculation.pairs import PARAMS, PROMPTS, Shelf

REGISTRY = own_drafters.registry()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("own"), REGISTRY)


def load(shelf: Shelf, kind: type[EagleModel], **options: Any) -> LLM:
    return LLM(
        str(shelf.target("LlamaForCausalLM", "plain")),
        draft=str(shelf.draft("eagle-3")),
        speculative=SpeculativeConfig(method=kind.__name__, width=3),
        registry=REGISTRY,
        dtype="float32",
        cache=CacheConfig(page_size_tokens=4, num_pages=64),
        reduction_slices=2,
        **options,
    )


def answers(llm: LLM) -> list[Any]:
    return [(list(out.token_ids), out.speculative) for out in llm.generate(PROMPTS, PARAMS)]


def test_a_call_within_a_call_is_made_once_on_every_rank(shelf: Shelf) -> None:
    with load(shelf, Counting) as one:
        wanted = answers(one)
    with ranks_are_threads(), load(shelf, Counting, tensor_parallel=2) as llm:
        assert answers(llm) == wanted
        ranks: Any = llm.engine.runner.model.ranks  # type: ignore[attr-defined]
        drafters: list[Any] = [llm.proposer, *ranks.proposers]
        told = ranks.calls.count("draft")
        list(llm.stream(PROMPTS[0], PARAMS[0]))
        stream = llm.stream(PROMPTS[1], PARAMS[0])
        for _ in range(3):
            next(stream)
        mine, theirs = (drafter.counted for drafter in drafters)
        assert mine == theirs != {}
        assert ranks.calls.count("draft") > told
        del stream
        assert answers(llm) == wanted
        assert drafters[0].released > len(PROMPTS)
        ranks.call("draft", ("count", ()), lambda: None)  # what was noted is told
        assert drafters[0].released == drafters[1].released
        assert drafters[0].counted == drafters[1].counted == {}


def test_a_drafter_with_a_propose_of_its_own_runs_whole_on_the_first_rank(shelf: Shelf) -> None:
    with load(shelf, Alone) as one:
        wanted = answers(one)
    with ranks_are_threads(), load(shelf, Alone, tensor_parallel=2) as llm:
        assert answers(llm) == wanted
        ranks: Any = llm.engine.runner.model.ranks  # type: ignore[attr-defined]
        assert "draft" not in ranks.calls
        assert "embed" in ranks.calls
        assert ranks.proposers == [None]
        assert llm.proposer.network.shards() == {}  # type: ignore[union-attr]


def test_the_class_that_has_propose_says_what_is_shared() -> None:
    class Named(Alone):
        shared_calls = ("forward",)

    class Again(Named):
        pass

    class Unsplit:
        shared_calls = ("forward",)

    assert shared_calls_of(EagleModel) == ("forward",)
    assert shared_calls_of(Counting) == ("forward", "count")
    assert shared_calls_of(Alone) == ()
    assert shared_calls_of(Again) == ("forward",)
    assert shared_calls_of(Unsplit) == ()
