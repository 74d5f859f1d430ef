"""The same text on any number of ranks: every architecture, with and without every drafter.

Temperatures 0, 0.7 and 1.3, truncated and penalised, mixed in one batch, cut into passes of few
rows, with so few pages that requests are preempted, and with prefixes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parallel.thread_ranks import ranks_are_threads
from pilotfish import LLM, SpeculativeConfig
from pilotfish.layers.attention import Attention
from pilotfish.ranks.sharded_model import ShardedModel
from pilotfish.testing import save_tiny
from speculation.pairs import METHODS, PARAMS, PROMPTS, Shelf, registry, targets

REGISTRY = registry()
TARGETS = targets(REGISTRY)
SLICES = 4
SHARED = [name for name in METHODS if name != "ngram"]
"""Drafters with a network, of which every rank has a part."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("ranks"), REGISTRY)


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str, str], Any]:
    return {}


Answers = tuple[list[Any], list[Any]]


def answers(llm: LLM) -> Answers:
    """Texts, and the counters of a drafter. Twice: the second time prefixes are there."""
    found = [out for _ in range(2) for out in llm.generate(PROMPTS, PARAMS)]
    texts = [(list(out.token_ids), out.finish_reason, out.logprobs) for out in found]
    return texts, [out.speculative for out in found]


def on_one(shelf: Shelf, path: Path, drafter: str | None, dtype: str) -> Answers:
    with shelf.llm(path, drafter, dtype, reduction_slices=SLICES) as llm:
        return answers(llm)


def attention_columns(drafter: Any) -> int:
    """Of the first attention's output projection, those that this rank loaded."""
    out = next(one for one in drafter.network.layers_inside() if isinstance(one, Attention)).out
    columns = [weight.in_features for weight in out.partials]
    assert sum(columns) == out.in_features
    return sum(columns)


def cases() -> Iterator[Any]:
    """Of each target one drafter in `make test`, in turn: its texts are also those without a draft.

    On as many ranks as share it each drafter is tried there once, and then on two.
    """
    for place, target in enumerate(TARGETS):
        quick = list(METHODS)[place % len(METHODS)]
        for drafter in (None, *METHODS):
            most = 2 if drafter in ("eagle-1", "dflash") else 4
            is_first = place < len(METHODS)
            for size in sorted({most, 2} if drafter == quick and not is_first else {most}):
                marks = [] if drafter == quick and (is_first or size == 2) else [pytest.mark.slow]
                name = f"{'-'.join(target)}, {drafter}, {size} ranks"
                yield pytest.param(target, drafter, size, id=name, marks=marks)


@pytest.mark.parametrize(("target", "drafter", "size"), list(cases()))
def test_the_text_is_that_of_one_device(
    shelf: Shelf,
    alone: dict[tuple[str, str, str], Any],
    target: tuple[str, str],
    drafter: str | None,
    size: int,
) -> None:
    path = shelf.target(*target)
    dtype = "float32" if drafter in (None, "eagle-3", "ngram") else "bfloat16"
    key = (*target, dtype)
    if key not in alone:
        alone[key], _ = on_one(shelf, path, None, dtype)
    options = {"tensor_parallel": size, "reduction_slices": SLICES}
    with ranks_are_threads(), shelf.llm(path, drafter, dtype, **options) as llm:
        found = answers(llm)
        model, proposer = llm.engine.runner.model, llm.proposer
        assert isinstance(model, ShardedModel)
        ranks: Any = model.ranks
        assert ranks.calls.count("execute") > 10
        if drafter in SHARED:
            assert ranks.calls.count("draft") > 20
            assert "embed" not in ranks.calls, "what is borrowed is part of a draft's pass"
            shares = [attention_columns(one) for one in (proposer, *ranks.proposers)]
    if drafter is None:
        assert found[0] == alone[key]
        return
    with shelf.llm(path, drafter, dtype, reduction_slices=SLICES) as one:
        assert found == answers(one)
        assert found[0] == alone[key]
        if drafter in SHARED:
            assert sum(counted["drafted"] for counted in found[1]) > 50
            assert [size * share for share in shares] == [attention_columns(one.proposer)] * size


@pytest.mark.parametrize(
    ("drafter", "sizes"),
    [
        ("eagle-3", (2,)),
        *(pytest.param(one, (2, 4), marks=pytest.mark.slow) for one in SHARED),
    ],
)
def test_probabilities_of_drafts_are_those_of_one_device(
    shelf: Shelf, drafter: str, sizes: tuple[int, ...]
) -> None:
    """Which `residual` acceptance reads: counters and texts hang on every probability."""
    path = shelf.target(*TARGETS[0])
    found = []
    for size in (1, *sizes):
        options = {"tensor_parallel": size, "reduction_slices": SLICES, "acceptance": "residual"}
        with ranks_are_threads(), shelf.llm(path, drafter, "float32", **options) as llm:
            found.append(answers(llm))
    assert found == found[:1] * len(found)


def test_a_draft_that_ranks_cannot_share_is_run_by_the_first(shelf: Shelf, tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
    draft = save_tiny("LlamaForCausalLM", "plain", tmp_path, REGISTRY, sizes)
    options: dict[str, Any] = {
        "draft": str(draft),
        "speculative": SpeculativeConfig(method="small_model", width=3),
        "dtype": "float32",
        "registry": REGISTRY,
        "reduction_slices": SLICES,
    }
    path = str(shelf.target("LlamaForCausalLM", "plain"))
    with LLM(path, **options) as llm:
        wanted = answers(llm)
    with ranks_are_threads(), LLM(path, tensor_parallel=2, **options) as llm:
        assert answers(llm) == wanted
        assert llm.engine.runner.model.ranks.calls.count("draft") == 0  # type: ignore[attr-defined]
