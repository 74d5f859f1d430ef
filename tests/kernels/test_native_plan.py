"""Plans: calls laid down once give, in every pass, what the same calls give one by one."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import needs_library
from kernels.weight_cases import draw_rows
from pilotfish.kernels.linear.native import KINDS, linear, prepare_blocks
from pilotfish.kernels.linear.planned import plan_slices
from pilotfish.kernels.native import plan as plan_module
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.library import library
from pilotfish.kernels.native.plan import Plan, PlannedCalls
from pilotfish.kernels.rms_norm import native as norm
from pilotfish.kernels.take_rows import native as take

pytestmark = needs_library

WIDTH, EPS = 40, 1e-5
ROW_COUNTS = (1, 3, 6, 7, 13, 40, 96, 130)
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
        self.few = take.plan_take_rows(plan, out, Pointer("index"), self.taken)
        self.num_seen: list[int] = []
        plan.torch(lambda a: self.num_seen.append(a.shape[0]), self.few)
        plan.read(self.few)
        self.calls: PlannedCalls = plan.finish()

    def run(self, x: torch.Tensor, index: torch.Tensor, threads: int) -> torch.Tensor:
        self.calls.begin({self.rows: x.shape[0], self.taken: index.shape[0]})
        self.calls.tensor(self.x).copy_(x)
        self.calls.run({"index": index.data_ptr()}, threads)
        return self.calls.tensor(self.few).clone()


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


def test_a_step_of_torch_is_left_out_where_it_has_no_rows() -> None:
    chain = Chain()
    for some in ([0, 2], [], [1]):
        x, index = torch.randn(3, WIDTH), torch.tensor(some, dtype=torch.int64)
        assert torch.equal(chain.run(x, index, 1), one_by_one(x, index))
    assert chain.num_seen == [2, 1]


@pytest.mark.parametrize(("count", "is_cut"), [(32, False), (33, True)])
def test_a_pass_is_cut_by_its_rows_not_by_their_multiples(
    count: int, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = library()
    assert native is not None
    runs: list[int] = []
    real = native.lib.pf_run
    lib = types.SimpleNamespace(pf_run=lambda at, n, t: runs.append(n) or real(at, n, t))
    rows, plan = Rows("T"), Plan()
    for of_what in (rows, rows.times(8)):
        plan_norm(plan, Buffer(of_what, WIDTH, torch.float32), WEIGHTS[0], None)
        plan.mark()
    calls = plan.finish()
    calls.begin({rows: count})
    monkeypatch.setattr(plan_module, "library", lambda: types.SimpleNamespace(lib=lib))
    calls.run({}, 1)
    assert runs == ([1, 1] if is_cut else [2])


class Interrupted(BaseException):
    pass


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """Raises Interrupted before the numbered line that plan.py runs inside of it."""
    left = [number]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != plan_module.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_an_interrupt_between_any_two_lines_leaves_the_next_pass_right() -> None:
    passes = [(torch.randn(count, WIDTH), torch.tensor([0, count - 1])) for count in (2, 5, 2)]
    wanted = [one_by_one(*one) for one in passes]
    for number in range(1000):
        chain = Chain()
        assert torch.equal(chain.run(*passes[0], 1), wanted[0])
        try:
            with interrupted_at(number):
                chain.run(*passes[1], 1)
        except Interrupted:
            pass
        else:
            break
        for one, right in list(zip(passes, wanted, strict=True))[number % 2 :]:
            assert torch.equal(chain.run(*one, 1), right), number
    assert 50 < number < 999


def test_memory_that_could_not_be_had_leaves_the_next_pass_right() -> None:
    chain = Chain()
    few, many = ((torch.randn(count, WIDTH), torch.tensor([0])) for count in (1, 40))
    chain.run(*few, 1)
    empty, calls = torch.empty, iter(range(9))

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") is torch.uint8 and next(calls) == 1:
            raise RuntimeError("planted: no memory")
        found: torch.Tensor = empty(*args, **options)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", failing)
        with pytest.raises(RuntimeError, match="planted"):
            chain.run(*many, 1)
    for one in (few, many):
        assert torch.equal(chain.run(*one, 1), one_by_one(*one))


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
    with pytest.raises(ValueError, match=r"without \['row_bytes'\] and with \['row_byte'\]"):
        Plan().call("take_rows", take.Arguments, x=0, index=0, out=0, rows=0, row_byte=4)


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


@settings(max_examples=40)
@given(st.data())
def test_slices_in_one_call_have_the_bits_of_a_product_each(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from([*KINDS]), min_size=1, max_size=2))
    width = 256 * data.draw(st.integers(1, 2))
    weights = []
    for place in range(data.draw(st.integers(1, 5))):
        drawn = [draw_rows(kind, 9 + 30 * i, width, place)[0] for i, kind in enumerate(kinds)]
        weights.append(prepare_blocks(drawn, None, dtype=torch.float32))
    outputs, count = weights[0].out_features, len(weights)
    plan, rows = Plan(), Rows("T")
    given_rows = Buffer(rows, count * width, torch.bfloat16)
    made = Buffer(rows, count * outputs, torch.float32)
    plan.read(plan_slices(plan, given_rows, weights, made))
    calls = plan.finish()
    for num_rows in data.draw(st.lists(st.sampled_from(ROW_COUNTS), min_size=1, max_size=2)):
        x = torch.randn(num_rows, count * width).bfloat16()
        calls.begin({rows: num_rows})
        calls.tensor(given_rows).copy_(x)
        calls.run({}, data.draw(st.integers(1, 3)))
        for place, weight in enumerate(weights):
            columns = x[:, place * width : (place + 1) * width].contiguous()
            wanted = linear(columns, weight, out_dtype=torch.float32)
            found = calls.tensor(made)[:, place * outputs : (place + 1) * outputs]
            assert torch.equal(found, wanted)
