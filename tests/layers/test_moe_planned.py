"""A mixture of experts as planned calls: the bits of single calls in passes of any size."""

from __future__ import annotations

import types
from typing import Any, cast

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, NATIVE, needs_library, same_bits, threads
from layers.test_moe import INT4, PLAIN, Shape, build, quantized, tensors_of
from pilotfish.kernels.grouped_linear import group_rows
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.plan import PlannedCalls
from pilotfish.kernels.router.native import plan_choose_experts
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.layers.router import Routing

pytestmark = needs_library

SHAPES = (
    Shape(),
    Shape(num_groups=4, num_kept_groups=2, num_chosen=4, normalize=False),
    Shape(num_experts=64, num_chosen=6, width=96, expert_width=64),
    Shape(num_chosen=1, scale=1.0),
)


def empty_plan(dtype: torch.dtype) -> PassPlan:
    return PassPlan(rotary=None, dtype=dtype, cache_dtype=dtype, backend=NATIVE)


class Planned:
    """A layer's calls, laid down once."""

    def __init__(self, layer: MixtureOfExperts, dtype: torch.dtype, width: int) -> None:
        self.run = empty_plan(dtype)
        self.x = self.run.buffer(width)
        out = self.run.sublayer(layer, self.x)
        self.seen: list[torch.Tensor] = []
        self.num_calls = self.run.plan.num_calls
        self.run.plan.torch(lambda found: self.seen.append(found.clone()), out)
        self.calls: PlannedCalls = self.run.plan.finish()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.begin({self.run.rows: x.shape[0]})
        self.calls.tensor(self.x).copy_(x)
        self.calls.run({}, torch.get_num_threads())
        return self.seen.pop()


def one_by_one(layer: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    run = types.SimpleNamespace(backend=NATIVE, row_multiple=1, num_rows=x.shape[0])
    return layer(x.clone(), cast(ForwardPass, run))


@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_planned_calls_have_the_bits_of_single_ones(
    shape: Shape, dtype: torch.dtype, is_int4: bool
) -> None:
    tensors = tensors_of(shape.oracle(), dtype)
    if is_int4:
        tensors, _ = quantized(tensors)
    layer = build(shape, tensors, NATIVE, INT4 if is_int4 else PLAIN)
    planned = Planned(layer, dtype, shape.width)
    assert planned.calls.num_torch_steps == 1  # the test's own
    for count in (1, 7, 2, 40, 3):
        x = torch.randn(count, shape.width).to(dtype)
        wanted = one_by_one(layer, x)
        for num_threads in (1, 2, 3):
            with threads(num_threads):
                assert same_bits(planned(x), wanted)


def test_without_shared_experts_and_with_scores_of_ones_own() -> None:
    shape = Shape()
    tensors = {
        name: tensor
        for name, tensor in tensors_of(shape.oracle(), torch.float32).items()
        if not name.startswith("shared")
    }
    routing = attrs.evolve(shape.routing, scoring=lambda logits: logits.sigmoid() + 0.25)
    layer = MixtureOfExperts(shape.width, shape.expert_width, routing, dtype=torch.float32)
    for name, tensor in tensors.items():
        layer.assign(name, tensor, NATIVE)
    planned = Planned(layer, torch.float32, shape.width)
    assert planned.calls.num_torch_steps == 2  # the scores are torch's
    for count in (5, 1):
        x = torch.randn(count, shape.width)
        assert same_bits(planned(x), one_by_one(layer, x))


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    num_experts=st.integers(1, 70),
    num_chosen=st.integers(1, 8),
    favourite=st.booleans(),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_rows_are_sorted_as_by_group_rows(
    *,
    counts: list[int],
    num_experts: int,
    num_chosen: int,
    favourite: bool,
    num_threads: int,
    seed: int,
) -> None:
    num_chosen = min(num_chosen, num_experts)
    routing = Routing(num_experts=num_experts, num_chosen=num_chosen)
    run = empty_plan(torch.float32)
    logits = run.buffer(num_experts)
    weights, groups = plan_choose_experts(run.plan, logits, None, **routing._options())
    seen: list[torch.Tensor] = []
    parts: tuple[Buffer, ...] = (weights, groups.rows, groups.places)
    run.plan.torch(lambda *found: seen.extend(part.clone() for part in found), *parts)
    calls = run.plan.finish()
    generator = torch.Generator().manual_seed(seed)
    for count in counts:
        x = torch.randn(count, num_experts, generator=generator)
        if favourite:
            x[:, :num_chosen] += 20
        choice, wanted_weights = routing(x, None, NATIVE)
        wanted = group_rows(choice, num_experts, backend=NATIVE)

        seen.clear()
        calls.begin({run.rows: count})
        calls.tensor(logits).copy_(x)
        calls.run({}, num_threads)
        assert same_bits(seen[0], wanted_weights)
        assert torch.equal(seen[1].flatten(), wanted.rows)
        assert torch.equal(seen[2], wanted.places)
        num_spans, *spans = groups.spans.tolist()
        found: Any = [tuple(spans[3 * i : 3 * i + 3]) for i in range(num_spans)]
        assert found == list(wanted.spans)
