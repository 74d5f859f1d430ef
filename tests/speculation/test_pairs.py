"""M targets x N drafters: with a draft the text is that of plain decoding, bit for bit."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilotfish import LLM, CacheConfig
from pilotfish.testing import drafters
from speculation.pairs import (
    ADVERSARIES,
    DRAFTERS,
    DTYPES,
    PARAMS,
    PROMPTS,
    VOCAB,
    Shelf,
    registry,
    targets,
)

REGISTRY = registry()
TARGETS = targets(REGISTRY)
PAGE = Path(__file__).parents[2] / "docs" / "speculation.md"

Answers = list[tuple[list[int], str, Any]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("pairs"), REGISTRY)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str, str], Answers]:
    return {}


def answers(llm: LLM) -> Answers:
    outputs = llm.generate(PROMPTS, PARAMS)
    return [(list(out.token_ids), out.finish_reason, out.logprobs) for out in outputs]


def script(drafter: str, wanted: Answers) -> drafters.Script:
    texts = [[*prompt, *tokens] for prompt, (tokens, _, _) in zip(PROMPTS, wanted, strict=True)]
    right = drafters.known_texts(texts)
    return {
        "silent": drafters.silent,
        "repeats": drafters.repeats,
        "random": drafters.random_tokens(VOCAB),
        "out of vocabulary": drafters.out_of_vocabulary(VOCAB),
        "always right": right,
        "always wrong": drafters.always_wrong(right, VOCAB),
        "right until 2": drafters.right_until(2, right, VOCAB),
    }[drafter]


CASES = [
    pytest.param(
        target,
        drafter,
        dtype,
        id=f"{'-'.join(target)}-{drafter}-{dtype}",
        marks=[] if dtype == DTYPES[(row + column) % len(DTYPES)] else [pytest.mark.slow],
    )
    for row, target in enumerate(TARGETS)
    for dtype in DTYPES
    for column, drafter in enumerate(DRAFTERS)
]
"""Of each pair one dtype in `make test`, in turn."""


@pytest.mark.parametrize(("target", "drafter", "dtype"), CASES)
def test_the_text_with_a_draft_is_the_text_without(
    shelf: Shelf,
    plain: dict[tuple[str, str, str], Answers],
    target: tuple[str, str],
    drafter: str,
    dtype: str,
) -> None:
    """T in 0, 0.7, 1.3, with and without truncation and penalties, mixed in one batch."""
    path = shelf.target(*target)
    key = (*target, dtype)
    if key not in plain:
        plain[key] = answers(shelf.llm(path, None, dtype))
    wanted = plain[key]
    llm = shelf.llm(path, drafter, dtype)
    if drafter in ADVERSARIES:
        drafters.play(llm, script(drafter, wanted))
    assert answers(llm) == wanted


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
def test_a_block_draft_on_cached_prefixes(shelf: Shelf, target: tuple[str, str]) -> None:
    """A second time, when pages of the prompts are there, and with prompts that branch off."""
    path = shelf.target(*target)
    prompts = [*PROMPTS, [*PROMPTS[2][:9], 4, 4], [*PROMPTS[5], 3, 3, 3]]
    params = [attrs.evolve(PARAMS[i % 6], stop_token_ids=(), min_tokens=0) for i in range(8)]
    options: dict[str, Any] = {"cache": CacheConfig(page_size_tokens=2, num_pages=90)}
    wanted = shelf.llm(path, None, "float32", **options).generate(prompts, params)
    llm = shelf.llm(path, "dflash", "float32", **options)
    for _ in range(2):
        found = llm.generate(prompts, params)
        assert [o.token_ids for o in found] == [o.token_ids for o in wanted]
        assert sum(o.speculative["drafted"] for o in found if o.speculative) > 30


def table() -> str:
    """The table of docs/speculation.md: every pair that a test above runs."""
    lines = [
        textwrap.fill(f"Drafters: {', '.join(DRAFTERS)}.", 120),
        "",
        f"| target | texts equal, of {len(DRAFTERS)} drafters |",
        "|---|---:|",
    ]
    for architecture, example in TARGETS:
        lines.append(f"| `{architecture}` ({example}) | {len(DRAFTERS)} |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_of_this_run() -> None:
    """Every pair is a test above, so the page can only claim what was run."""
    assert table() in PAGE.read_text(), f"put this table into {PAGE.name}:\n{table()}"
