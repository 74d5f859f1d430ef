"""A draft's passes as native calls: the bits of its layers called one by one, nothing left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dflash.checkpoints import CASES
from dflash.conftest import Pair
from dflash.driver import Driver, Recorder, load
from dflash.histories import play
from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from pilotfish.layers.rope import Rotary
from pilotfish_dflash.network import ContextKV, DFlashLlama3

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
        patch.setattr(DFlashLlama3, "_planned", lambda self, kind: None)
        single = history(draft)
    assert len(planned) == len(single) > 20
    assert all(map(torch.equal, planned, single))


@pytest.mark.parametrize("case", CASES)
def test_passes_may_be_laid_down_before_the_first_request(pair: Pair, case: str) -> None:
    draft = load(*pair(case), dtype="bfloat16", backend=NATIVE)
    draft.plan_pass()
    made = dict(draft.network._passes)
    assert all(made.values())
    history(draft)
    assert draft.network._passes == made


def turned(name: str) -> Callable[[Any], None]:
    """Gives a part a method that gives columns in reverse."""

    def plant(part: Any) -> None:
        real = getattr(type(part), name)

        def method(self: object, *args: object) -> object:
            found = real(self, *args)
            x, *others = found if isinstance(found, tuple) else (found,)
            return (x.flip(-1), *others) if others else x.flip(-1)

        part.__class__ = type("Own", (type(part),), {name: method})

    return plant


def turned_context(part: ContextKV) -> None:
    class Own(ContextKV):
        def write(self, rows: torch.Tensor, *args: Any) -> None:
            super().write(rows.flip(-1), *args)

    part.__class__ = Own


@pytest.mark.parametrize(
    ("path", "plant"),
    [
        ("hidden_norm", turned("__call__")),
        ("fc", turned("__call__")),
        ("context.kv", turned("__call__")),
        ("context", turned_context),
        ("layers.1", turned("__call__")),
        ("norm", turned("add")),
        ("", turned("project_target_hidden")),
    ],
)
def test_a_part_of_ones_own_computes_in_planned_passes(
    pair: Pair, path: str, plant: Callable[[Any], None]
) -> None:
    case = next(iter(CASES))
    plain, draft = (load(*pair(case), dtype="bfloat16", backend=NATIVE) for _ in range(2))
    part: Any = draft.network
    for step in path.split(".") if path else ():
        part = part[int(step)] if step.isdecimal() else getattr(part, step)
    plant(part)
    found = history(draft)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DFlashLlama3, "_planned", lambda self, kind: None)
        assert all(map(torch.equal, found, history(draft)))
    assert not all(map(torch.equal, found, history(plain)))


def test_angles_that_native_code_would_misread_are_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = load(*pair(next(iter(CASES))), backend=NATIVE)
    real = Rotary.__call__
    changed: Any = lambda self, *args: tuple(one.double() for one in real(self, *args))  # noqa: E731
    monkeypatch.setattr(Rotary, "__call__", changed)
    with pytest.raises(ValueError, match=r"cos is .*torch\.float64"):
        history(draft)
