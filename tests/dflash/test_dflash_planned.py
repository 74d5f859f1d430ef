"""A draft's passes as native calls: the bits of its layers called one by one, nothing left over."""

from __future__ import annotations

import pytest
import torch

from dflash.checkpoints import CASES
from dflash.conftest import Pair
from dflash.driver import Driver, Recorder, load
from dflash.histories import play
from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from pilotfish_dflash.network import DFlashLlama3

pytestmark = needs_library


def history(draft: Recorder) -> list[torch.Tensor]:
    """Logits of every block, and the draft's keys and values after every step."""
    found: list[torch.Tensor] = []

    def note(driver: Driver) -> None:
        found.extend(driver.rows(name) for name in driver.running)

    for seed in range(2):
        found += (one.logits for one in play(draft, seed, num_steps=6, after=note))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_planned_passes_have_the_bits_of_single_calls(pair: Pair, case: str, dtype: str) -> None:
    draft = load(*pair(case), dtype=dtype, backend=NATIVE)
    planned = history(draft)
    assert len(draft.network._passes) == 2
    assert all(made.num_torch_steps == 0 for made in draft.network._passes.values())
    with called_one_by_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DFlashLlama3, "_planned", lambda self, kind, rows, kv: None)
        single = history(draft)
    assert len(planned) == len(single) > 20
    assert all(map(torch.equal, planned, single))
