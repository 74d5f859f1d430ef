"""Every family and option against transformers: logits against float64, greedy tokens equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama3.driver import greedy, load, whole
from llama3.families import CASES, exact, generate, logits, prompt, reference

Checkpoint = Callable[[str], Path]

PROMPT = prompt(27)
"""Longer than every window, and than every original length before scaling."""


def error(got: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Root of the mean square, and the largest, difference."""
    gap = got.double() - wanted
    return gap.square().mean().sqrt().item(), gap.abs().max().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_as_near_float64_as_eager_torch(
    checkpoint: Checkpoint, case: str, dtype: str
) -> None:
    path, torch_dtype = checkpoint(case), getattr(torch, dtype)
    oracle = logits(exact(path, torch_dtype), PROMPT)
    ours = error(whole(load(path, dtype), PROMPT), oracle)
    theirs = error(logits(reference(path, torch_dtype), PROMPT), oracle)
    assert ours[0] <= 2 * theirs[0]
    assert ours[1] <= 2 * theirs[1]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_transformers(checkpoint: Checkpoint, case: str) -> None:
    path = checkpoint(case)
    assert greedy(load(path), PROMPT, 8) == generate(reference(path), PROMPT, 8)


@pytest.mark.parametrize("case", [case for case in CASES if "dynamic" in case or "long" in case])
def test_greedy_tokens_equal_over_the_original_length(checkpoint: Checkpoint, case: str) -> None:
    """The prompt is shorter than the original 16 tokens, and the answer grows past them."""
    path = checkpoint(case)
    assert greedy(load(path), PROMPT[:10], 14) == generate(reference(path), PROMPT[:10], 14)


def test_a_chunked_prompt_gives_the_same_answer(checkpoint: Checkpoint) -> None:
    """Also where angles depend on the prompt's length, and the first chunk ends before it."""
    for case in ("llama-dynamic", "phi3-longrope", "mistral"):
        path = checkpoint(case)
        wanted = generate(reference(path), PROMPT, 8)
        assert greedy(load(path), PROMPT, 8, prefill_chunk=6) == wanted
