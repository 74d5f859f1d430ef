"""Which layers a plan speaks for, and that the others are called in a planned pass."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest
import torch

from kernels.native_cases import NATIVE, needs_library
from layers.test_moe import Shape, build, tensors_of
from pilotfish.kernels import KernelBackend
from pilotfish.layers.attention import Attention
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.norm import LayerNorm, Norm, RMSNorm
from pilotfish.layers.pass_plan import PassPlan, has_plan
from pilotfish.layers.router import Router, Routing

pytestmark = needs_library


class Wider(Attention):
    """Made in another way; computes as written."""

    def __init__(self) -> None:
        super().__init__(0, 8, 2, 1, 4)
        self.qkv = Linear(16, 16)


class Doubled(Linear):
    def __call__(self, *args: Any) -> torch.Tensor:
        return 2 * super().__call__(*args)


class Shifted(RMSNorm):
    def add(self, *args: Any) -> Any:
        return args


class Own(Norm):
    def __call__(self, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        return x


class OwnPlan(Doubled):
    def plan(self, *args: Any) -> Any:
        return args


def patched() -> Layer:
    layer = GatedMLP(8, 8)
    layer.__dict__["__call__"] = lambda x, run: x
    return layer


@pytest.mark.parametrize(
    ("make", "plan", "speaks"),
    [
        (lambda: Linear(4, 4), "plan", True),
        (lambda: Router(4, Shape().routing), "plan", True),
        (Wider, "plan", True),
        (lambda: RMSNorm(4, 1e-5), "plan_add", True),
        (lambda: LayerNorm(4, 1e-5), "plan_add", True),
        (lambda: Doubled(4, 4), "plan", False),
        (lambda: OwnPlan(4, 4), "plan", True),
        (lambda: Shifted(4, 1e-5), "plan_add", False),
        (Own, "plan_add", False),
        (patched, "plan", False),
        (Layer, "plan", False),
    ],
)
def test_a_plan_speaks_for_what_was_written_beside_it(
    make: Callable[[], Layer], plan: str, speaks: bool
) -> None:
    assert has_plan(make(), plan) is speaks


class Reversed(Router):
    def choose(self, *args: Any) -> Any:
        choice, weights = super().choose(*args)
        return choice, weights.flip(1)


class Heavier(Routing):
    def __call__(self, *args: Any) -> Any:
        choice, weights = super().__call__(*args)
        return choice, 2 * weights


def own_router(layer: MixtureOfExperts) -> None:
    layer.router.__class__ = Reversed


def own_routing(layer: MixtureOfExperts) -> None:
    options = attrs.asdict(layer.router.routing, recurse=False)
    layer.router.routing = Heavier(**options)


@pytest.mark.parametrize("change", [own_router, own_routing])
def test_a_part_that_computes_in_its_own_way_stops_the_plan_of_what_holds_it(
    change: Callable[[MixtureOfExperts], None],
) -> None:
    shape = Shape()
    plain, layer = (build(shape, tensors_of(shape.oracle(), torch.float32), NATIVE) for _ in "ab")
    change(layer)
    run = PassPlan(rotary=None, dtype=torch.float32, cache_dtype=torch.float32, backend=NATIVE)
    x = run.buffer(shape.width)
    out = run.sublayer(layer, x)
    calls = run.plan.finish()
    assert calls.num_torch_steps == 1
    rows = torch.randn(3, shape.width)
    calls.begin({run.rows: 3})
    calls.tensor(x).copy_(rows)
    now: Any = types.SimpleNamespace(backend=NATIVE, row_multiple=1, num_rows=3)
    run.current.append(cast(ForwardPass, now))
    calls.run({}, 1)
    found = calls.tensor(out).clone()
    assert torch.equal(found, layer(rows, now))
    assert not torch.equal(found, plain(rows, now))


def test_a_part_without_a_plan_gives_rows_as_wide_as_is_said() -> None:
    class Twice(Layer):
        def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
            return torch.cat((x, -x), 1)

    run = PassPlan(rotary=None, dtype=torch.float32, cache_dtype=torch.float32, backend=NATIVE)
    x = run.buffer(5)
    out = run.sublayer(Twice(), x, out_width=10)
    calls, rows = run.plan.finish(), torch.randn(3, 5)
    calls.begin({run.rows: 3})
    calls.tensor(x).copy_(rows)
    run.current.append(cast(ForwardPass, None))
    calls.run({}, 1)
    assert torch.equal(calls.tensor(out), torch.cat((rows, -rows), 1))


@pytest.mark.parametrize(
    ("make", "plan", "kind", "name"),
    [
        (lambda: RMSNorm(4, 1e-5), "plan_add", RMSNorm, "add"),
        (lambda: RMSNorm(4, 1e-5), "plan", RMSNorm, "__call__"),
        (lambda: OwnPlan(4, 4), "plan", OwnPlan, "__call__"),
        (Wider, "plan", Attention, "__call__"),
        (lambda: Shape().routing, "plan", Routing, "__call__"),
    ],
)
def test_a_plan_does_not_speak_for_a_class_that_was_patched(
    make: Callable[[], Any], plan: str, kind: type, name: str
) -> None:
    assert has_plan(make(), plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, lambda *args: args)
        assert not has_plan(make(), plan)
    assert has_plan(make(), plan)


def test_blocks_and_mixtures_are_planned() -> None:
    assert has_plan(PreNormBlock(*(GatedMLP(4, 4) for _ in range(4))))  # type: ignore[arg-type]
    assert has_plan(MixtureOfExperts(4, 4, Shape().routing, dtype=torch.float32))
