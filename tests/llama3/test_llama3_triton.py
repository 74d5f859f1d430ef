"""The whole network on the Triton kernels: on a GPU, or interpreted where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama3.driver import chunked, greedy, load, whole
from llama3.families import exact, generate, logits, prompt, reference
from pilotfish.kernels import KernelBackend

Checkpoint = Callable[[str], Path]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = KernelBackend("triton", True)
PROMPT = prompt(9)


@pytest.mark.parametrize("case", ["granite", "olmo", "phi3-partial", "qwen3-windows"])
def test_logits_and_bits(checkpoint: Checkpoint, case: str) -> None:
    path = checkpoint(case)
    model = load(path, backend=TRITON, device=DEVICE)
    assert model.is_invariant
    oracle = logits(exact(path), PROMPT)
    ours = whole(model, PROMPT)
    assert ours.device.type == DEVICE
    theirs = (logits(reference(path), PROMPT) - oracle).abs().max()
    assert (ours.cpu().double() - oracle).abs().max() <= 2 * theirs
    assert torch.equal(chunked(model, PROMPT, [4, 1, 4]), ours)


def test_greedy_tokens(checkpoint: Checkpoint) -> None:
    path = checkpoint("llama-dynamic")
    model = load(path, backend=TRITON, device=DEVICE)
    assert greedy(model, prompt(14), 5) == generate(reference(path), prompt(14), 5)
