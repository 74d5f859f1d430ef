"""StoredRows cut at rows and columns, where they lie."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.native_cases import NATIVE, needs_library
from kernels.weight_cases import FLOAT_KINDS, draw_rows, widths
from pilotfish.errors import ConfigError
from pilotfish.kernels.linear import PackedRows, linear, prepare_blocks
from pilotfish.kernels.linear.native import KINDS
from pilotfish.parallel.shard import Shard
from pilotfish.weights import (
    StoredRows,
)
from weights.shards_cases import (
    numbers,
    ranges_of,
)


@st.composite
def stored(draw: st.DrawFn) -> tuple[StoredRows, list[str]]:
    """Parts of any kinds of one width under one another, some of them every other row of more."""
    kinds = [draw(st.sampled_from(list(KINDS)))]
    width = draw(st.sampled_from(widths(kinds[0])))
    fitting = [kind for kind, (_, columns, _) in KINDS.items() if width % columns == 0]
    kinds += draw(st.lists(st.sampled_from(fitting), max_size=2))
    parts = []
    for seed, kind in enumerate(kinds):
        part, _ = draw_rows(kind, draw(st.integers(1, 5)), width, seed)
        if kind != "int4" and draw(st.booleans()):
            part = attrs.evolve(part, blocks=part.blocks[::2])
        parts.append(part)
    rows = sum(part.out_features for part in parts)
    return StoredRows((rows, width), tuple(parts), torch.float32), kinds


@given(stored(), st.data())
def test_cut_rows_are_rows_of_the_whole(
    drawn: tuple[StoredRows, list[str]], data: st.DataObject
) -> None:
    whole, _ = drawn
    shard = Shard.rows(*ranges_of(data.draw, whole.shape[0]))
    got = whole.shard(shard)
    assert torch.equal(numbers(got), shard.of(numbers(whole)))
    shared = {part.blocks.untyped_storage().data_ptr() for part in whole.parts}
    assert all(part.blocks.untyped_storage().data_ptr() in shared for part in got.parts)


def block(part: PackedRows) -> int:
    """Columns that must stay together."""
    if part.scale is not None:
        return part.in_features // part.scale.shape[1]
    return KINDS[part.kind][1]


@given(stored(), st.data())
def test_cut_columns_are_columns_of_the_whole(
    drawn: tuple[StoredRows, list[str]], data: st.DataObject
) -> None:
    whole, kinds = drawn
    step = int(np.lcm.reduce([block(part) for part in whole.parts]))
    shard = Shard.columns(*ranges_of(data.draw, whole.shape[1], step))
    got = whole.shard(shard)
    assert torch.equal(numbers(got), shard.of(numbers(whole)))
    if len(shard.ranges) == 1 and "int4" not in kinds:
        shared = {part.blocks.untyped_storage().data_ptr() for part in whole.parts}
        assert all(part.blocks.untyped_storage().data_ptr() in shared for part in got.parts)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_native_code_multiplies_cut_columns_where_they_lie(kind: str) -> None:
    """With the bits of a dense copy, by itself and under rows of another kind."""
    part, _ = draw_rows(kind, 5, 1536 if kind != "int4" else 1040, 0)
    plain, _ = draw_rows("bfloat16", 3, part.in_features, 1)
    size = max(block(part), 8)
    columns = Shard.columns(range(size, 3 * size))
    generator = torch.Generator().manual_seed(1)
    for under in ([], [plain]):
        whole = (*under, part)
        rows = sum(one.out_features for one in whole)
        cut = StoredRows((rows, part.in_features), whole, torch.float32).shard(columns).parts
        dense = [attrs.evolve(one, blocks=one.blocks.contiguous()) for one in cut]
        for num_rows in (1, 5):
            x = torch.randn(num_rows, 2 * size, generator=generator)
            got, wanted = (
                linear(x, prepare_blocks(parts, dtype=torch.float32), backend=NATIVE)
                for parts in (cut, dense)
            )
            assert torch.equal(got, wanted)


def test_slices_that_follow_one_another_are_one_view() -> None:
    part, _ = draw_rows("q4_k", 3, 1024, 0)
    whole = StoredRows((3, 1024), (part,), torch.float32)
    got = whole.shard(Shard.columns(range(256, 512), range(512, 1024)))
    assert got.parts[0].blocks.data_ptr() == part.blocks.data_ptr() + 144
    assert got.parts[0].blocks.shape == (3, 3 * 144)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FLOAT_KINDS])
def test_columns_within_a_block_are_refused(kind: str) -> None:
    part, _ = draw_rows(kind, 3, 1536 if kind != "int4" else 520, 0)
    whole = StoredRows((3, part.in_features), (part,), torch.float32)
    size = block(part)
    for wrong in (range(size // 2), range(size // 2, size), range(0, size + 1)):
        with pytest.raises(ConfigError) as caught:
            whole.shard(Shard.columns(wrong))
        for said in (
            kind.upper(),
            f"blocks of {size} columns",
            "tensor_parallel",
            f"columns {wrong.start} to {wrong.stop}",
            "reduction_slices",
        ):
            assert said in str(caught.value)
