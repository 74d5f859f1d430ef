"""short_conv against its reference: any ragged batch, any place of the columns, any chunking."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.conv_passes import DTYPES, Batch, Pass, batches, make_pass
from kernels.places import DEVICES, placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.short_conv import ColumnRun, ConvColumns, eager, reference, short_conv

BACKENDS = (KernelBackend("torch"), KernelBackend("triton"))
DEVICE = DEVICES["triton"]


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: NaN equals NaN."""
    return x.cpu().contiguous().view(torch.uint8)


def exact(made: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and the same with every summand positive: [T', D] each.

    made: after the reference has written its columns.
    """
    width, columns = made.weight.shape[0], made.columns
    size = made.weight.shape[1]
    bcx = made.bcx.double()
    out = torch.zeros(2, bcx.shape[0], size, dtype=torch.float64)
    for row, memory, places in reference._rows(columns, 1, width):
        parts = made.weight.double() * memory[places].double()
        if made.bias is not None:
            parts = torch.cat((parts, made.bias.double()[None]))
        c = bcx[row, size : 2 * size]
        out[0, row] = parts.sum(0) * c
        out[1, row] = parts.abs().sum(0) * c.abs()
    return out[0], out[1]


@settings(max_examples=100)
@given(batch=batches())
def test_eager_has_the_bits_of_the_reference(batch: Batch) -> None:
    made = make_pass(batch)
    wanted, got = made.copy("cpu"), made.copy("cpu")
    out = reference.short_conv(wanted.bcx, wanted.weight, wanted.bias, wanted.columns, 1)
    assert torch.equal(got.run(BACKENDS[0]), out)
    assert not out.isnan().any()
    assert all(map(torch.equal, map(bits, got.memories), map(bits, wanted.memories)))


@settings(max_examples=30)
@given(batch=batches())
def test_triton_is_as_near_float64_as_the_reference(batch: Batch) -> None:
    """And it writes the same columns, and no other."""
    if batch.dtype == torch.bfloat16 and DEVICE == "cpu":
        batch = attrs.evolve(batch, dtype=torch.float16)  # the interpreter truncates to bfloat16
    made = make_pass(batch)
    wanted, got = made.copy("cpu"), made.copy(DEVICE)
    out = reference.short_conv(wanted.bcx, wanted.weight, wanted.bias, wanted.columns, 1).double()
    true, _ = exact(wanted)
    ours = got.run(BACKENDS[1]).cpu().double()
    assert not ours.isnan().any()
    assert (ours - true).abs().sum() <= 2 * (out - true).abs().sum()
    assert all(map(torch.equal, map(bits, got.memories), map(bits, wanted.memories)))


@settings(max_examples=20)
@given(batch=batches())
def test_triton_in_bfloat16_is_within_three_truncations(batch: Batch) -> None:
    """The interpreter truncates to bfloat16: the columns, their sum and its product with c."""
    made = make_pass(attrs.evolve(batch, dtype=torch.bfloat16))
    wanted, got = made.copy("cpu"), made.copy(DEVICE)
    reference.short_conv(wanted.bcx, wanted.weight, wanted.bias, wanted.columns, 1)
    true, size = exact(wanted)
    ours = got.run(BACKENDS[1]).cpu().double()
    unit = torch.finfo(torch.bfloat16).eps
    assert ((ours - true).abs() <= 1.02 * unit * (size + 2 * true.abs())).all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@settings(max_examples=25)
@given(batch=batches())
def test_every_request_has_the_bits_it_has_alone(backend: KernelBackend, batch: Batch) -> None:
    device = DEVICES[backend.name]
    made = make_pass(batch)
    together = made.copy(device).run(backend)
    first_row = 0
    for index, part in enumerate(batch.rows):
        if part.count:
            alone = only(made, batch, index).copy(device).run(backend)
            assert torch.equal(together[first_row : first_row + part.count], alone)
        first_row += part.count
    assert not together[first_row:].any()


def only(made: Pass, batch: Batch, index: int) -> Pass:
    """The pass of one of the requests."""
    counts = made.columns.row_counts
    first = sum(counts[:index])
    here = [i for i, part in enumerate(batch.rows) if not part.is_run and i < index]
    begin = sum(counts[i] for i in here)
    count = counts[index]
    is_run = batch.rows[index].is_run
    kept = slice(begin, begin + (0 if is_run else count))
    runs = [
        attrs.evolve(run, first_row=0)
        for run in made.columns.runs
        if is_run and run.first_row == first
    ]
    columns = attrs.evolve(
        made.columns,
        columns=made.columns.columns[kept],
        own=made.columns.own[kept],
        rows=torch.empty(0, dtype=torch.int64) if is_run else None,
        places=made.columns.places[kept],
        runs=tuple(runs),
        row_counts=(count,),
    )
    return attrs.evolve(made, bcx=made.bcx[first : first + count], columns=columns)


def strip_pass(bcx: torch.Tensor, strip: torch.Tensor, start: int) -> ConvColumns:
    """One request's rows as a run."""
    empty = torch.empty(0, dtype=torch.int64, device=strip.device)
    return ConvColumns(
        memory=(strip,),
        columns=empty.view(0, 3),
        own=empty,
        rows=empty,
        places=empty,
        runs=(ColumnRun(memory=(strip,), first_row=0, num_rows=bcx.shape[0], start=start),),
        row_counts=(bcx.shape[0],),
        ring=1,
    )


def ring_pass(bcx: torch.Tensor, memory: torch.Tensor, start: int, ring: int) -> ConvColumns:
    """One request's rows in place."""
    count = bcx.shape[0]
    places = torch.arange(count, device=memory.device)
    columns = (start + places[:, None] + torch.arange(3, device=memory.device)) % ring
    return ConvColumns(
        memory=(memory,),
        columns=columns,
        own=columns[:, -1].contiguous(),
        rows=None,
        places=places,
        runs=(),
        row_counts=(count,),
        ring=ring,
    )


def in_pieces(
    bcx: torch.Tensor, weight: torch.Tensor, cuts: Sequence[int], backend: KernelBackend, ring: int
) -> torch.Tensor:
    """Rows in pieces of the given sizes, each in place where the ring takes it, else as a run."""
    memory = torch.zeros(ring, weight.shape[1], dtype=bcx.dtype, device=bcx.device)
    done, parts = 0, []
    for size in cuts:
        rows = bcx[done : done + size]
        if size <= ring - 2:
            columns = ring_pass(rows, memory, done, ring)
        else:
            window = memory[[(done + i) % ring for i in range(2)]]
            strip = torch.cat((window, torch.full_like(memory[:1], torch.nan).expand(size, -1)))
            columns = strip_pass(rows, strip, 0)
        parts.append(short_conv(rows, weight, None, columns, 0, backend=backend))
        done += size
        if columns.runs:
            for i in range(2):
                memory[(done + i) % ring] = strip[size + i]
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@settings(max_examples=10)
@given(data=st.data())
def test_pieces_have_the_bits_of_the_whole(
    backend: KernelBackend, dtype: torch.dtype, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.sampled_from((1, 1, 2, 3, 7, 8, 9)), min_size=1, max_size=6))
    device = DEVICES[backend.name]
    generator = torch.Generator().manual_seed(len(cuts))
    bcx = torch.randn(sum(cuts), 3 * 40, generator=generator).to(device, dtype)
    weight = torch.randn(3, 40, generator=generator).to(device)
    whole = in_pieces(bcx, weight, [sum(cuts)], backend, 3)
    assert torch.equal(in_pieces(bcx, weight, cuts, backend, 8), whole)


def test_tiles_have_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is computed tile by tile; where the tiles end does not show."""
    bcx, weight = torch.randn(50, 3 * 24), torch.randn(3, 24)
    whole = in_pieces(bcx, weight, [50], BACKENDS[0], 3)
    for rows in (1, 2, 7, 49):
        monkeypatch.setattr(eager, "TILE_ELEMENTS", rows * 24)
        assert torch.equal(in_pieces(bcx, weight, [50], BACKENDS[0], 3), whole)


def test_next_rows_follow_the_rows_of_a_pass() -> None:
    """In place over the end of a ring, and in a run."""
    weight, ring = torch.randn(3, 8), 9
    bcx = torch.randn(12, 3 * 8)
    whole = in_pieces(bcx[:6], weight, [6], BACKENDS[0], 3)
    memory = torch.zeros(2 * ring, 8)
    strip = torch.zeros(10, 8)
    in_place = ring_pass(bcx[:2], memory, 5, ring)
    columns = attrs.evolve(
        in_place,
        columns=in_place.columns + ring,
        own=in_place.own + ring,
        rows=torch.tensor([3, 4]),
        runs=(ColumnRun(memory=(strip,), first_row=0, num_rows=3, start=0),),
        row_counts=(3, 2),
    )
    got: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    rows = torch.cat((bcx[:3], bcx[:2]))
    out = short_conv(rows, weight, None, columns, 0, backend=BACKENDS[0])
    got[0].append(out[:3])
    got[1].append(out[3:])
    for step in range(3):
        columns = columns.next_row()
        rows = bcx[[3 + step, 2 + step]]
        out = short_conv(rows, weight, None, columns, 0, backend=BACKENDS[0])
        got[0].append(out[:1])
        got[1].append(out[1:])
    assert torch.equal(torch.cat(got[0]), whole)
    assert torch.equal(torch.cat(got[1]), whole[:5])
    with pytest.raises(ValueError, match="rows of every request"):
        attrs.evolve(columns, row_counts=(1, 0)).next_row()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_addresses_past_two_billion_elements(backend: KernelBackend) -> None:
    size = 1 << 14
    num_columns = (1 << 31) // size + 4
    # Only the columns that are touched take memory.
    memory = torch.empty(num_columns, size, dtype=torch.float16)
    memory[-3:] = torch.arange(3, dtype=torch.float16)[:, None]
    last = num_columns - 1
    columns = attrs.evolve(
        ring_pass(torch.empty(1, 1), memory, 0, 3),
        columns=torch.tensor([[last - 2, last - 1, last]]),
        own=torch.tensor([last]),
        ring=num_columns,
    )
    bcx = torch.ones(1, 3 * size, dtype=torch.float16)
    out = placed(short_conv)(bcx, torch.ones(3, size), None, columns, 0, backend=backend)
    assert (out == 0 + 1 + 1).all()
    assert (memory[last] == 1).all()
