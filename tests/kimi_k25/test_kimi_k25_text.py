"""The text network against transformers: logits, greedy tokens, taps, in every shape and layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kimi_k25.cases import SHAPES, check_long, subject, tensors_of, write_kimi, write_shape
from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.testing import Subject, promise_named
from pilotfish_kimi_k25.examples import kimi_oracle

PARITY = (
    "parity with the oracle",
    "greedy tokens are the oracle's",
    "boundaries are the oracle's",
)
LAYOUTS = ("published", "written", "modules")
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.mark.parametrize("promise", PARITY)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, promise: str, folder: Path) -> None:
    with subject(write_shape(shape, folder)) as one:
        promise_named(promise).keep(one)


@pytest.mark.parametrize("shape", SHAPES)
def test_long_prompts(shape: str, folder: Path) -> None:
    """Past the first partitions of keys, and past the length that YaRN stretches."""
    with subject(write_shape(shape, folder)) as one:
        tokens = one.tokens(125)
        for dtype in one.dtypes:
            exact, eager = one.oracle.exact(tokens, dtype), one.oracle.eager(tokens, dtype)
            check_long(one.alone(tokens, dtype), exact, eager, dtype)


def test_single_and_ragged_batches_have_the_oracles_tokens(folder: Path) -> None:
    path = write_shape("latent queries, two groups, yarn", folder)
    with subject(path) as one, LLM(str(path), dtype="float32", max_batch_tokens=16) as llm:
        prompts = [one.tokens(count, count) for count in (1, 40, 7, 19, 3)]
        wanted = [one.oracle.generate(prompt, 10) for prompt in prompts]
        assert [list(o.token_ids) for o in llm.generate(prompts, GREEDY)] == wanted
        for prompt, answer in zip(prompts, wanted, strict=True):
            assert list(llm.generate([prompt], GREEDY)[0].token_ids) == answer


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, written in every layout."""
    made = tmp_path_factory.mktemp("kimi")
    return {layout: write_kimi(layout, made) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same_model(layout: str, kimi: dict[str, Path]) -> None:
    """Text only where the file has no vision tower, and the same text where it has one."""
    tokens = list(range(3, 40))
    oracle = kimi_oracle(kimi["published"])
    for dtype in ("float32", "bfloat16"):
        with LLM(str(kimi[layout]), dtype=dtype) as llm:
            scores = llm.score(tokens)
            answer = list(llm.generate([tokens], GREEDY)[0].token_ids)
        check_long(scores, oracle.exact(tokens, dtype), oracle.eager(tokens, dtype), dtype)
        if dtype == "float32":
            assert answer == oracle.generate(tokens, 10)


def test_the_head_is_read_from_the_tensors(tmp_path: Path) -> None:
    """The outer config says tied, which is its class's default: the file has a head of its own."""
    path = write_kimi("published", tmp_path)
    config = (path / "config.json").read_text()
    untied = Subject(name="untied", model=str(path), registry=load_registry())
    wanted = untied.alone([1, 2, 3])
    assert '"tie_word_embeddings": false' in config
    with Subject(name="u", model=str(path), registry=load_registry()) as one:
        trapped = one.with_config({"tie_word_embeddings": True})
        with trapped:
            assert torch.equal(trapped.alone([1, 2, 3]), wanted)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    path = write_shape("plain queries, biased, half-split, tied", tmp_path)
    assert not any("lm_head" in name for name in tensors_of(path))
    with subject(path) as one:
        assert one.prepared("float32").model.config.tie_word_embeddings
