"""Every option against transformers: logits against float64, greedy tokens equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lfm2.checkpoints import CASES, exact, generate, logits, prompt, reference
from lfm2.driver import DTYPES, Driver, greedy, load, whole
from pilotfish.kernels import KernelBackend

Checkpoint = Callable[[str], Path]

PROMPT = prompt(27)
PROMPTS = [prompt(27, seed=seed) for seed in range(4)]
"""Several, since the largest error of one prompt is one element's chance."""


def error(got: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Root of the mean square, and the largest, difference."""
    gap = got.double() - wanted
    return gap.square().mean().sqrt().item(), gap.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_as_near_float64_as_eager_torch(
    checkpoint: Checkpoint, case: str, dtype: str
) -> None:
    path, torch_dtype = checkpoint(case), getattr(torch, dtype)
    models = exact(path, torch_dtype), reference(path, torch_dtype)
    true, theirs = (torch.cat([logits(m, tokens) for tokens in PROMPTS]) for m in models)
    model = load(path, dtype)
    ours = torch.cat([whole(model, tokens) for tokens in PROMPTS])
    assert error(ours, true)[0] <= 2 * error(theirs, true)[0]
    assert error(ours, true)[1] <= 2 * error(theirs, true)[1]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_transformers(checkpoint: Checkpoint, case: str) -> None:
    path = checkpoint(case)
    model, theirs = load(path), reference(path)
    for tokens in (PROMPT, PROMPT[:1], PROMPT[:2]):
        wanted = generate(theirs, tokens, 8)
        assert greedy(model, tokens, 8) == wanted
    assert greedy(model, PROMPT, 8, prefill_chunk=4) == generate(theirs, PROMPT, 8)


@pytest.mark.parametrize("case", ["plain", "all-conv", "width-5"])
def test_a_ragged_batch_is_as_near_float64(checkpoint: Checkpoint, case: str) -> None:
    """One-token rows beside long ones; then decoding rows beside a prompt's chunk."""
    path = checkpoint(case)
    model, oracle, theirs = load(path), exact(path), reference(path)
    driver = Driver(model)
    prompts = {str(n): prompt(n, seed=n) for n in (1, 30, 2, 5)}
    got: dict[str, list[torch.Tensor]] = {name: [] for name in prompts}
    for name, tokens in prompts.items():
        driver.add(name, tokens)
    for rows in ({"1": 1, "30": 20, "2": 1, "5": 4}, {"2": 1, "30": 10, "5": 1}):
        for name, part in driver.run(rows).items():
            got[name].append(part)
    ours = torch.cat([part for parts in got.values() for part in parts])
    true = torch.cat([logits(oracle, tokens) for tokens in prompts.values()])
    wanted = torch.cat([logits(theirs, tokens) for tokens in prompts.values()])
    assert error(ours, true)[0] <= 2 * error(wanted, true)[0]


@pytest.mark.parametrize("case", ["bias", "width-5"])
def test_triton_is_as_near_float64(checkpoint: Checkpoint, case: str) -> None:
    """Our Triton kernels, interpreted on a CPU, in a whole pass and then step by step."""
    path, tokens = checkpoint(case), PROMPT[:7]
    model = load(path, backend=KernelBackend("triton"))
    driver = Driver(model)
    driver.add("a", tokens)
    got = torch.cat([driver.run({"a": count})["a"] for count in (4, 1, 2)])
    true = logits(exact(path), tokens)
    assert error(got, true)[0] <= 2 * error(logits(reference(path), tokens), true)[0]
