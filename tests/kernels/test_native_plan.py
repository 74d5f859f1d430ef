"""Plans: calls laid down once give, in every pass, what the same calls give one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import needs_library
from pilotfish.kernels.native.plan import Buffer, Plan, PlannedCalls, Pointer, Rows
from pilotfish.kernels.rms_norm import native as norm
from pilotfish.kernels.take_rows import native as take

pytestmark = needs_library

WIDTH, EPS = 40, 1e-5
WEIGHTS = [torch.rand(WIDTH) + 0.5 for _ in range(4)]


def plan_norm(plan: Plan, x: Buffer, weight: torch.Tensor, residual: Buffer | None) -> Buffer:
    return norm.plan_rms_norm(plan, x, weight, EPS, norm.AFTER_WEIGHT, residual=residual)


class Chain:
    """Norms with residuals, a step of torch between them, and some rows taken at the end."""

    def __init__(self) -> None:
        self.rows, self.taken = Rows("T"), Rows("R")
        plan = Plan()
        self.x = Buffer(self.rows, WIDTH, torch.float32)
        stream = self.x
        out = plan_norm(plan, stream, WEIGHTS[0], None)
        out = plan_norm(plan, out, WEIGHTS[1], stream)
        plan.mark()
        doubled = Buffer(self.rows, WIDTH, torch.float32)
        plan.torch(lambda a, b: torch.add(a, a, out=b), out, doubled)
        out = plan_norm(plan, doubled, WEIGHTS[2], stream)
        out = plan_norm(plan, out, WEIGHTS[3], stream)
        few = take.plan_take_rows(plan, out, Pointer("index"), self.taken)
        self.seen: list[torch.Tensor] = []
        plan.torch(lambda a: self.seen.append(a.clone()), few)
        self.calls: PlannedCalls = plan.finish()

    def run(self, x: torch.Tensor, index: torch.Tensor, threads: int) -> torch.Tensor:
        self.calls.begin({self.rows: x.shape[0], self.taken: index.shape[0]})
        self.calls.tensor(self.x).copy_(x)
        self.calls.run({"index": index.data_ptr()}, threads)
        return self.seen.pop()


def one_by_one(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    stream = x.clone()
    out = norm.rms_norm(stream, WEIGHTS[0], EPS, "after_weight")
    out = norm.rms_norm(out, WEIGHTS[1], EPS, "after_weight", residual=stream)
    out = norm.rms_norm(out + out, WEIGHTS[2], EPS, "after_weight", residual=stream)
    out = norm.rms_norm(out, WEIGHTS[3], EPS, "after_weight", residual=stream)
    return take.take_rows(out, index)


@settings(max_examples=25)
@given(st.data())
def test_a_plan_computes_what_its_calls_compute_in_passes_of_any_size(data: st.DataObject) -> None:
    chain = Chain()
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 70))
        some = data.draw(st.lists(st.integers(0, count - 1), max_size=5))
        x = torch.randn(count, WIDTH)
        index = torch.tensor(some, dtype=torch.int64)
        found = chain.run(x, index, data.draw(st.integers(1, 3)))
        assert torch.equal(found, one_by_one(x, index))


def test_an_exception_in_the_middle_leaves_the_next_pass_right() -> None:
    rows, plan = Rows("T"), Plan()
    x = Buffer(rows, WIDTH, torch.float32)
    out = plan_norm(plan, x, WEIGHTS[0], None)
    fails = [True]

    def maybe(tensor: torch.Tensor) -> None:
        if fails.pop():
            tensor.fill_(float("nan"))
            raise RuntimeError("planted")

    plan.torch(maybe, out)
    plan_norm(plan, out, WEIGHTS[1], x)
    calls = plan.finish()
    given_rows = torch.randn(3, WIDTH)
    calls.begin({rows: 3})
    calls.tensor(x).copy_(given_rows)
    with pytest.raises(RuntimeError, match="planted"):
        calls.run({}, 2)
    fails.append(False)
    calls.tensor(x).copy_(given_rows)
    calls.run({}, 2)
    stream = given_rows.clone()
    first = norm.rms_norm(stream, WEIGHTS[0], EPS, "after_weight")
    norm.rms_norm(first, WEIGHTS[1], EPS, "after_weight", residual=stream)
    assert torch.equal(calls.tensor(x), stream)


def test_a_field_that_is_not_given_is_named() -> None:
    with pytest.raises(AssertionError, match="row_bytes"):
        Plan().call("take_rows", take.Arguments, x=0, index=0, out=0, rows=0)


def test_memory_is_shared_only_by_buffers_that_are_not_needed_at_once() -> None:
    rows, plan = Rows("T"), Plan()
    first = Buffer(rows, WIDTH, torch.float32)
    kept = plan_norm(plan, first, WEIGHTS[0], None)
    out = kept
    for _ in range(6):
        out = plan_norm(plan, out, WEIGHTS[1], None)
    plan_norm(plan, out, WEIGHTS[2], kept)
    calls = plan.finish()
    calls.begin({rows: 5})
    # The first, the one that is kept, and two that take turns.
    assert calls.scratch_bytes < 5 * (5 * WIDTH * 4 + 64)
    x = torch.randn(5, WIDTH)
    calls.tensor(first).copy_(x)
    calls.run({}, 1)
    want = norm.rms_norm(x, WEIGHTS[0], EPS, "after_weight")
    out = want
    for _ in range(6):
        out = norm.rms_norm(out, WEIGHTS[1], EPS, "after_weight")
    assert torch.equal(calls.tensor(kept), want + out)


def test_what_is_filled_before_and_read_after_keeps_its_memory() -> None:
    rows, plan = Rows("T"), Plan()
    first, second = (Buffer(rows, WIDTH, torch.float32) for _ in range(2))
    early = plan_norm(plan, first, WEIGHTS[0], None)
    for weight in WEIGHTS:
        out = plan_norm(plan, early, weight, None)
        out = plan_norm(plan, out, weight, None)
    last = plan_norm(plan, second, WEIGHTS[1], None)
    plan.fill(first, second)
    plan.read(early, last)
    calls = plan.finish()
    for count in (3, 1):
        given = [torch.randn(count, WIDTH) for _ in range(2)]
        calls.begin({rows: count})
        for buffer, values in zip((first, second), given, strict=True):
            calls.tensor(buffer).copy_(values)
        calls.run({}, 1)
        wanted = [
            norm.rms_norm(values, weight, EPS, "after_weight")
            for values, weight in zip(given, WEIGHTS, strict=False)
        ]
        assert torch.equal(calls.tensor(early), wanted[0])
        assert torch.equal(calls.tensor(last), wanted[1])
