"""Drafts on Triton kernels, under the interpreter where there is no GPU, against the oracle."""

from __future__ import annotations

import pytest
import torch

from eagle.conftest import Pair
from eagle.driver import load
from eagle.histories import Oracles, play
from pilotfish.kernels import KernelBackend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("case", ["eagle1", "speculators"])
def test_drafts_are_the_oracles_on_triton(pair: Pair, case: str) -> None:
    target, draft = pair(case)
    found = play(
        load(target, draft, backend=KernelBackend("triton"), device=DEVICE), 1, 4, names="ab"
    )
    assert len(found) > 1
    assert max(len(one.drafted) for one in found) > 1
    ours, eager, same = Oracles(case, target).check(found)
    assert same
    assert ours <= 2 * eager
