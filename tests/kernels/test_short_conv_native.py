"""Native short_conv: the reference's bits over any ragged batch, in every way of running."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings

from kernels.conv_passes import Batch, Rows, batches, make_pass
from kernels.native_cases import (
    DTYPES,
    NATIVE,
    guarded,
    in_every_way,
    needs_library,
    same_bits,
)
from kernels.test_short_conv import bits, only
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.kernels.native.buffers import Rows as PlanRows
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.short_conv import native, reference, short_conv

pytestmark = needs_library


@pytest.fixture(autouse=True)
def _poison() -> object:
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@settings(max_examples=150)
@given(batch=batches())
def test_bits_are_the_references_and_no_other_column_is_written(batch: Batch) -> None:
    made = make_pass(batch)
    wanted, got = made.copy("cpu"), made.copy("cpu")
    out = reference.short_conv(wanted.bcx, wanted.weight, wanted.bias, wanted.columns, 1)
    assert torch.equal(got.run(NATIVE), out)
    assert all(map(torch.equal, map(bits, got.memories), map(bits, wanted.memories)))


@settings(max_examples=25)
@given(batch=batches())
def test_every_request_has_the_bits_it_has_alone(batch: Batch) -> None:
    made = make_pass(batch)
    together = made.copy("cpu").run(NATIVE)
    first_row = 0
    for index, part in enumerate(batch.rows):
        if part.count:
            alone = only(made, batch, index).copy("cpu").run(NATIVE)
            assert torch.equal(together[first_row : first_row + part.count], alone)
        first_row += part.count
    assert not together[first_row:].any()


def large_batch(dtype: torch.dtype, size: int) -> Batch:
    return Batch(
        rows=(Rows(3, False, 4), Rows(29, True, 0), Rows(1, False, 0), Rows(5, True, 2)),
        slots=(2, 0, 3, 1),
        width=3,
        size=size,
        ring=8,
        padding=2,
        dtype=dtype,
        bias=True,
        seed=1,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [33, 300])
def test_bits_in_every_way_of_running(dtype: torch.dtype, size: int) -> None:
    made = make_pass(large_batch(dtype, size))

    def computed() -> torch.Tensor:
        fresh = made.copy("cpu")
        return torch.cat((fresh.run(NATIVE), *fresh.memories))

    in_every_way(computed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 17, 80])
def test_memory_beyond_a_row_is_left_alone(dtype: torch.dtype, size: int) -> None:
    made = make_pass(large_batch(dtype, size))
    wanted, fresh = made.copy("cpu").run(NATIVE), made.copy("cpu")
    columns = attrs.evolve(
        fresh.columns,
        memory=tuple(map(guarded, fresh.columns.memory)),
        columns=guarded(fresh.columns.columns),
        runs=tuple(
            attrs.evolve(run, memory=tuple(map(guarded, run.memory))) for run in fresh.columns.runs
        ),
    )
    assert fresh.bias is not None
    got = short_conv(
        guarded(fresh.bcx),
        guarded(fresh.weight),
        guarded(fresh.bias),
        columns,
        1,
        backend=NATIVE,
    )
    assert torch.equal(got, wanted)


def test_a_copy_of_a_pass_knows_its_own_columns() -> None:
    """What the kernel keeps of a pass is not handed on."""
    made = make_pass(large_batch(torch.float32, 20))
    first = made.copy("cpu")
    first.run(NATIVE)
    second = attrs.evolve(
        first.columns, memory=tuple(torch.zeros_like(m) for m in first.columns.memory)
    )
    assert not second.native
    wanted = reference.short_conv(
        first.bcx, first.weight, first.bias, make_pass(large_batch(torch.float32, 20)).columns, 1
    )
    got = short_conv(first.bcx, first.weight, first.bias, second, 1, backend=NATIVE)
    assert not torch.equal(got, wanted)


def test_a_planned_call_gives_the_bits_of_a_single_one() -> None:
    made = make_pass(large_batch(torch.bfloat16, 50))
    rows = PlanRows("T")
    plan, seen = Plan(), []  # type: ignore[var-annotated]
    bcx = Buffer(rows, 150, torch.bfloat16)
    plan.torch(lambda memory: memory.copy_(made.bcx), bcx)
    where = Pointer("columns")
    out = native.plan_short_conv(plan, bcx, made.weight, made.bias, columns=where, layer=1)
    plan.torch(lambda found: seen.append(found.clone()), out)
    calls = plan.finish()
    calls.begin({rows: made.bcx.shape[0]})
    for _ in range(2):
        fresh = made.copy("cpu")
        calls.run({"columns": native.pass_address(fresh.columns)}, 2)
        assert same_bits(seen[-1], made.copy("cpu").run(NATIVE))
