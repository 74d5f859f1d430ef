"""LFM2's passes as native calls: the bits of its layers called one by one, nothing left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import both_ways
from lfm2.checkpoints import CASES, prompt
from lfm2.driver import DTYPES, Driver, load
from pilotfish_lfm2.model import LFM2Model

pytestmark = needs_library

Checkpoint = Callable[[str], Path]


def history(model: LFM2Model) -> list[torch.Tensor]:
    """Logits and columns of passes that mix strips, rows in place, rejections and single rows."""
    driver = Driver(model)
    for name, length in (("a", 30), ("b", 12), ("c", 40)):
        driver.add(name, prompt(length, seed=length))
    found: list[torch.Tensor] = []
    for rows, keep in (
        ({"a": 19, "b": 3}, None),
        ({"c": 1}, None),
        ({"b": 4, "a": 3, "c": 20}, {"b": 1, "a": 3, "c": 18}),
        ({"a": 1, "b": 1, "c": 1}, None),
        ({"c": 1, "a": 2}, {"c": 1, "a": 0}),
        ({"a": 1}, None),
    ):
        found += driver.run(dict(rows), keep).values()
        found += (part for name in driver.contexts for part in driver.columns(name))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_planned_passes_have_the_bits_of_single_calls(
    checkpoint: Checkpoint, case: str, dtype: str
) -> None:
    model = load(checkpoint(case), dtype, NATIVE)
    planned, single = both_ways(model, lambda: history(model))
    assert len(planned) == len(single)
    assert all(map(torch.equal, planned, single))
