"""Native grouped_linear: a row has the bits of its group's own linear layer, in every way."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library, same_bits
from kernels.test_grouped_linear import choices, draw_weights, fill
from kernels.test_linear_native import assert_near
from kernels.weight_cases import draw_rows, widths
from pilotfish.errors import WeightsError
from pilotfish.kernels.grouped_linear import GroupedWeight, RowGroups, group_rows, grouped_linear
from pilotfish.kernels.linear import linear, prepare_blocks
from pilotfish.kernels.linear.native import KINDS

pytestmark = needs_library


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def grouped(x: torch.Tensor, weight: GroupedWeight, groups: RowGroups) -> torch.Tensor:
    """x: [T, K], not sorted; computed in every way, with rows gathered and with an index."""
    out = in_every_way(lambda: grouped_linear(x, weight, groups, backend=NATIVE, gather=True))
    sorted_rows = x[groups.rows]
    assert same_bits(grouped_linear(sorted_rows, weight, groups, backend=NATIVE), out)
    return out


@settings(max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 40),
    num_groups=st.integers(1, 9),
    chosen=st.integers(1, 4),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from(("one group", "random")),
    seed=st.integers(0, 2**16),
)
def test_rows_have_the_bits_of_their_groups_own_layer(
    *,
    kind: str,
    rows: int,
    num_groups: int,
    chosen: int,
    outputs: int,
    dtype: torch.dtype,
    spread: str,
    seed: int,
) -> None:
    width = widths(kind)[seed % len(widths(kind))]
    torch.manual_seed(seed)
    choice = choices(rows, min(chosen, num_groups), num_groups, spread)
    drawn = [draw_rows(kind, outputs, width, seed + group) for group in range(num_groups)]
    weight = GroupedWeight.from_parts([part for part, _ in drawn], dtype)
    x = torch.randn(rows, width).to(dtype)
    groups = group_rows(choice, num_groups, backend=NATIVE, row_multiple=16)
    assert groups.rows.shape == (choice.numel(),)  # no padding
    out = grouped(x, weight, groups)
    for group, start, end in groups.spans:
        part, numbers = drawn[group]
        own = x[groups.rows[start:end]]
        alone = linear(own, prepare_blocks([part], dtype=dtype), backend=NATIVE)
        assert same_bits(out[start:end], alone)
        assert_near(out[start:end], own, numbers)


@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_builder_keeps_groups_together(dtype: torch.dtype, is_int4: bool) -> None:
    weight, numbers = fill(draw_weights(5, 19, 64, dtype), NATIVE, is_int4=is_int4)
    assert weight.kind == "native"
    first, second = weight.parts[:2]
    assert second.blocks.data_ptr() - first.blocks.data_ptr() == first.blocks.nbytes
    x, choice = torch.randn(7, 64).to(dtype), choices(7, 3, 5, "random")
    groups = group_rows(choice, 5, backend=NATIVE)
    out = grouped(x, weight, groups)
    for group, start, end in groups.spans:
        if not is_int4 or dtype == torch.float32:  # else the numbers are rounded, not multiplied so
            assert_near(out[start:end], x[groups.rows[start:end]], numbers[group].float())


def test_many_rows_of_few_groups() -> None:
    drawn = [draw_rows("q4_1", 37, 544, seed) for seed in range(3)]
    weight = GroupedWeight.from_parts([part for part, _ in drawn], torch.float32)
    x = torch.randn(230, 544)
    groups = group_rows(torch.tensor([[0, 2]]).repeat(230, 1), 3, backend=NATIVE)
    out = grouped(x, weight, groups)
    for index, group in enumerate((0, 2)):
        assert_near(out[index * 230 : (index + 1) * 230], x, drawn[group][1])
    few = group_rows(torch.tensor([[0, 2]]).repeat(3, 1), 3, backend=NATIVE)
    part = grouped(x[:3], weight, few)
    assert same_bits(part, torch.cat((out[:3], out[230:233])))


def test_memory_behind_an_array_is_not_touched() -> None:
    parts = [draw_rows("q8_0", 5, 96, seed)[0] for seed in range(3)]
    held = [attrs.evolve(part, blocks=guarded(part.blocks)) for part in parts]
    groups = group_rows(torch.tensor([[0, 2], [1, 2]]), 3, backend=NATIVE)
    groups = attrs.evolve(groups, rows=guarded(groups.rows))
    x = torch.randn(2, 96)
    wanted = grouped(x, GroupedWeight.from_parts(parts, torch.float32), groups)
    assert same_bits(
        grouped(guarded(x), GroupedWeight.from_parts(held, torch.float32), groups), wanted
    )


def test_a_row_that_is_no_number_poisons_itself_only() -> None:
    parts = [draw_rows("q4_1", 9, 96, seed)[0] for seed in range(2)]
    weight = GroupedWeight.from_parts(parts, torch.float32)
    groups = group_rows(torch.zeros(6, 1, dtype=torch.int64), 2, backend=NATIVE)
    x = torch.randn(6, 96)
    wanted = grouped(x, weight, groups)
    x[4, 50] = float("nan")
    got = grouped(x, weight, groups)
    others = [0, 1, 2, 3, 5]
    assert same_bits(got[others], wanted[others])
    assert got[4].isnan().all()


def test_no_rows_give_no_results() -> None:
    weight = GroupedWeight.from_parts([draw_rows("float32", 4, 8, 0)[0]], torch.float32)
    none = RowGroups(rows=torch.empty(0, dtype=torch.int64), places=torch.empty(0, 1).long())
    assert grouped_linear(torch.empty(0, 8), weight, none, backend=NATIVE).shape == (0, 4)


def test_a_group_that_does_not_fit_is_named() -> None:
    parts = [draw_rows("q4_1", 4, width, 0)[0] for width in (64, 96)]
    with pytest.raises(WeightsError, match="96"):
        GroupedWeight.from_parts(parts, torch.float32)
