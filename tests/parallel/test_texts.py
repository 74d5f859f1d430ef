"""The same text on any number of ranks: every architecture, with and without every drafter.

Temperatures 0, 0.7 and 1.3, truncated and penalised, mixed in one batch, cut into passes of few
rows, with so few pages that requests are preempted, and with prefixes that are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallel.thread_ranks import ranks_are_threads
from pilotfish import LLM
from pilotfish.ranks.sharded_model import ShardedModel
from speculation.pairs import METHODS, PARAMS, PROMPTS, Shelf, registry, targets

REGISTRY = registry()
TARGETS = targets(REGISTRY)
SLICES = 4


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("ranks"), REGISTRY)


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str, str], Any]:
    return {}


def answers(llm: LLM) -> list[Any]:
    """Twice: the second time prefixes are there."""
    found = [llm.generate(PROMPTS, PARAMS) for _ in range(2)]
    return [
        (list(out.token_ids), out.finish_reason, out.logprobs) for outs in found for out in outs
    ]


def on_one(shelf: Shelf, path: Path, dtype: str) -> list[Any]:
    with shelf.llm(path, None, dtype, reduction_slices=SLICES) as llm:
        return answers(llm)


CASES = [
    pytest.param(
        target,
        drafter,
        id=f"{'-'.join(target)}, {drafter}",
        marks=[] if drafter in {None, list(METHODS)[place % len(METHODS)]} else [pytest.mark.slow],
    )
    for place, target in enumerate(TARGETS)
    for drafter in (None, *METHODS)
]
"""Of each target one drafter in `make test`, in turn, and all in `make test-all`."""


@pytest.mark.parametrize(("target", "drafter"), CASES)
def test_the_text_is_that_of_one_device(
    shelf: Shelf,
    alone: dict[tuple[str, str, str], Any],
    target: tuple[str, str],
    drafter: str | None,
) -> None:
    path = shelf.target(*target)
    dtype = "float32" if drafter in (None, "eagle-3", "ngram") else "bfloat16"
    key = (*target, dtype)
    if key not in alone:
        alone[key] = on_one(shelf, path, dtype)
    size = 2 if drafter in ("eagle-1", "dflash") else 4
    options = {"tensor_parallel": size, "reduction_slices": SLICES}
    with ranks_are_threads(), shelf.llm(path, drafter, dtype, **options) as llm:
        assert answers(llm) == alone[key]
        model = llm.engine.runner.model
        assert isinstance(model, ShardedModel)
        assert model.ranks.calls.count("execute") > 10  # type: ignore[attr-defined]
