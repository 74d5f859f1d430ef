"""The draft on the Triton kernels: interpreted on a CPU, compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from dflash.conftest import Pair
from dflash.driver import load
from dflash.histories import Oracles, play
from pilotfish.kernels import KernelBackend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("case", ["mixed", "not-causal", "speculators-anchor"])
def test_logits_are_as_near_float64_as_eager_torch(pair: Pair, case: str) -> None:
    """Windows, causal and whole blocks over paged context, and the stacked write."""
    target, draft = pair(case)
    backend = KernelBackend("triton")
    num_steps = 5 if DEVICE.type == "cpu" else 9
    found = play(load(target, draft, backend=backend, device=DEVICE), num_steps=num_steps)
    assert sum(len(one.proposal.tokens) for one in found) > 5
    ours, eager, same = Oracles(case, target).check(found)
    assert same
    assert ours <= 2 * eager
