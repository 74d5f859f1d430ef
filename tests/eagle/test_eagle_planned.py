"""A draft's passes as native calls: the bits of its layers called one by one, nothing left over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eagle.checkpoints import CASES
from eagle.conftest import Pair
from eagle.driver import Driver, Move, load
from eagle.test_eagle_batches import PROMPTS, move, note
from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from pilotfish_eagle.model import EagleModel

pytestmark = needs_library


def history(eagle: EagleModel) -> list[torch.Tensor]:
    """Logits of every drafted token: chunked prompts, batches, rejections, requests that wait."""
    driver = Driver(eagle)
    found: list[torch.Tensor] = []
    for name, prompt in PROMPTS.items():
        driver.add(name, prompt)
    driver.step({"a": Move(rows=3), "c": Move(rows=2)})
    driver.step({"a": Move(rows=4, next_token=9, width=3), "c": Move(rows=1)})
    driver.step({"c": Move(rows=1, next_token=4, width=2)})
    found += note(driver, ["c"])
    for step in range(1, 5):
        driver.step({name: move(driver, name, step) for name in PROMPTS})
        found += note(driver, list(PROMPTS))
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_planned_passes_have_the_bits_of_single_calls(pair: Pair, case: str, dtype: str) -> None:
    eagle = load(*pair(case), dtype=dtype, backend=NATIVE)
    planned = history(eagle)
    assert set(eagle.network._passes) == ({False} if eagle.config.version == 1 else {False, True})
    assert all(made.num_torch_steps == 0 for made in eagle.network._passes.values())
    with called_one_by_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagleModel, "_planned", lambda self, combines: None)
        single = history(eagle)
    assert len(planned) == len(single) > 10
    assert all(map(torch.equal, planned, single))


@pytest.mark.parametrize("case", CASES)
def test_passes_may_be_laid_down_before_the_first_request(pair: Pair, case: str) -> None:
    eagle = load(*pair(case), dtype="bfloat16", backend=NATIVE)
    eagle.plan_pass()
    made = dict(eagle.network._passes)
    assert all(made.values())
    history(eagle)
    assert eagle.network._passes == made


def turned(kind: type, name: str = "__call__") -> type:
    """A subclass of which a method gives columns in reverse."""
    real = getattr(kind, name)

    def method(self: object, *args: object) -> object:
        found = real(self, *args)
        x, *others = found if isinstance(found, tuple) else (found,)
        return (x.flip(-1), *others) if others else x.flip(-1)

    return type("Own", (kind,), {name: method})


@pytest.mark.parametrize(
    ("case", "path", "name"),
    [
        ("eagle1-deep", "first", "__call__"),
        ("eagle1-deep", "layers.0", "__call__"),
        ("eagle1", "fc", "__call__"),
        ("eagle3", "joining", "__call__"),
        ("eagle3", "joining.input_norm", "__call__"),
        ("eagle3", "joining.hidden_norm", "__call__"),
        ("eagle3", "norm", "__call__"),
        ("eagle3", "lm_head", "__call__"),
        ("eagle3", "", "combine"),
        ("eagle3-norm-before-fc", "input_norm", "__call__"),
        ("eagle3-fc-norm", "fc_norm.1", "__call__"),
    ],
)
def test_a_part_of_ones_own_computes_in_planned_passes(
    pair: Pair, case: str, path: str, name: str
) -> None:
    plain, eagle = (load(*pair(case), dtype="bfloat16", backend=NATIVE) for _ in range(2))
    part: Any = eagle.network
    for step in path.split(".") if path else ():
        part = part[int(step)] if step.isdecimal() else getattr(part, step)
    part.__class__ = turned(type(part), name)
    found = history(eagle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagleModel, "_planned", lambda self, combines: None)
        assert all(map(torch.equal, found, history(eagle)))
    assert not all(map(torch.equal, found, history(plain)))
