"""grouped_linear and combine_rows: sorting, error, rows that are their own, on both backends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.invariance.linear_probe import Product, row_multiple
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.combine_rows import reference as combine_reference
from pilotfish.kernels.grouped_linear import (
    GroupedWeight,
    GroupedWeightBuilder,
    RowGroups,
    group_rows,
    grouped_linear,
    groups,
    reference,
)
from pilotfish.kernels.int4 import dequantize_int4, quantize_int4

combine_rows, grouped_linear = placed(combine_rows), placed(grouped_linear)

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
BACKENDS = (TORCH, TRITON)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN; random data are the same in every run."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def fill(
    weights: torch.Tensor, backend: KernelBackend, *, is_int4: bool = False
) -> tuple[GroupedWeight, torch.Tensor]:
    """weights: [E, O, K] -> the prepared weight and the numbers that it stands for."""
    builder = GroupedWeightBuilder(*weights.shape, dtype=weights.dtype, backend=backend)
    numbers = torch.empty_like(weights)
    for group in torch.randperm(weights.shape[0]).tolist():
        assert not builder.is_complete
        if is_int4:
            packed, scale = quantize_int4(weights[group])
            numbers[group] = dequantize_int4(packed, scale, weights.dtype)
            builder.add(group, packed, scale)
        else:
            numbers[group] = weights[group]
            builder.add(group, weights[group].clone())
    return builder.finish(), numbers


def draw_weights(num_groups: int, out: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(num_groups, out, width) * width**-0.5).to(dtype)


def choices(num_rows: int, num_chosen: int, num_groups: int, kind: str) -> torch.Tensor:
    """[T, S], each row's groups all different."""
    if kind == "one group":
        return torch.arange(num_chosen).expand(num_rows, -1).contiguous()
    rows = [torch.randperm(num_groups)[:num_chosen].sort().values for _ in range(num_rows)]
    return torch.stack(rows)


def run(
    x: torch.Tensor, weight: GroupedWeight, choice: torch.Tensor, backend: KernelBackend, pad: int
) -> torch.Tensor:
    """x: [T, K] -> [T, S, O], each row with each of its groups."""
    found = group_rows(choice, weight.num_groups, backend=backend, row_multiple=pad)
    out = grouped_linear(x[found.rows], weight, found, backend=backend)
    return out[found.places]


@pytest.mark.parametrize("few", [0, groups.FEW_PAIRS])
@given(
    num_rows=st.integers(1, 40),
    num_chosen=st.integers(1, 4),
    num_groups=st.integers(4, 9),
    row_multiple=st.sampled_from((1, 2, 4, 8)),
    kind=st.sampled_from(("any", "one group")),
)
def test_every_pair_has_a_place_in_its_group(
    *, few: int, num_rows: int, num_chosen: int, num_groups: int, row_multiple: int, kind: str
) -> None:
    torch.manual_seed(num_rows)
    choice = choices(num_rows, num_chosen, num_groups, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "FEW_PAIRS", few)
        found = group_rows(choice, num_groups, backend=TORCH, row_multiple=row_multiple)
    check_places(found, choice)
    group_of = torch.full_like(found.rows, -1)
    for group, start, end in found.spans:
        assert (end - start) % row_multiple == 0
        assert (end - start) - int((choice == group).sum()) in range(row_multiple)
        assert (group_of[start:end] == -1).all()
        group_of[start:end] = group
    assert torch.equal(group_of[found.places], choice)
    assert [span[0] for span in found.spans] == sorted(set(choice.flatten().tolist()))


def test_indices_of_one_row_serve_inside_and_outside_of_inference_mode() -> None:
    groups._indices_of_one_row.cache_clear()
    choice = torch.tensor([[1, 4, 5]])
    with torch.inference_mode():
        inside = group_rows(choice, 6, backend=TORCH, row_multiple=2)
    outside = group_rows(choice + 1, 7, backend=TORCH, row_multiple=2)
    assert outside.places is not inside.places
    assert not outside.rows.is_inference()
    assert not outside.places.is_inference()
    assert [group for group, _, _ in outside.spans] == [2, 5, 6]
    check_places(outside, choice)


def check_places(found: RowGroups, choice: torch.Tensor) -> None:
    places = found.places.flatten().tolist()
    assert found.places.shape == choice.shape
    assert len(set(places)) == len(places)
    rows = torch.arange(choice.shape[0]).unsqueeze(1).expand_as(choice)
    assert torch.equal(found.rows[found.places], rows)


@given(
    num_rows=st.integers(1, 150),
    num_chosen=st.integers(1, 4),
    num_groups=st.integers(4, 9),
    kind=st.sampled_from(("any", "one group")),
)
def test_blocks_cover_every_sorted_row_once(
    num_rows: int, num_chosen: int, num_groups: int, kind: str
) -> None:
    torch.manual_seed(num_rows)
    choice = choices(num_rows, num_chosen, num_groups, kind)
    found = group_rows(choice, num_groups, backend=TRITON)
    check_places(found, choice)
    assert found.blocks is not None
    group_of = torch.full_like(found.rows, -1)
    for group, start, end in found.blocks.tolist():
        assert 0 <= end - start <= groups.BLOCK_ROWS
        assert (group_of[start:end] == -1).all()
        group_of[start:end] = group
    assert torch.equal(group_of[found.places], choice)


def check(
    x: torch.Tensor,
    numbers: torch.Tensor,
    choice: torch.Tensor,
    got: torch.Tensor,
    truncated_weights: bool = False,
) -> None:
    """Error against float64 within twice eager's, or the rounding of float32 sums.

    truncated_weights: Triton's interpreter truncates to bfloat16, INT4 weights included.
    """
    pairs = numbers[choice]  # [T, S, O, K]
    wanted = torch.einsum("tk,tsok->tso", x.double(), pairs.double())
    size = torch.einsum("tk,tsok->tso", x.double().abs(), pairs.double().abs())
    usual = torch.stack(
        [torch.nn.functional.linear(row, weight) for row, weight in zip(
            x.repeat_interleave(choice.shape[1], 0), pairs.flatten(0, 1), strict=True
        )]
    ).view_as(wanted)  # fmt: skip
    # Any order of K float32 additions errs by at most K * 2^-24 of the sum of sizes (Higham 2002,
    # eq. 4.4); the result is then rounded once (the interpreter truncates).
    eps = torch.finfo(x.dtype).eps
    limit = x.shape[1] * 2**-24 * size.max() + eps * wanted.abs().max()
    if truncated_weights:
        limit = limit + eps * size.max()
    limit = torch.maximum(limit, 2 * (usual.double() - wanted).abs().max())
    assert got.dtype == x.dtype
    assert ((got.double() - wanted).abs() <= limit).all()


@given(
    num_rows=st.integers(1, 12),
    num_chosen=st.integers(1, 3),
    num_groups=st.integers(3, 6),
    width=st.integers(1, 3),
    out=st.integers(1, 70),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    kind=st.sampled_from(("any", "one group")),
    form=st.sampled_from(("int4", "float", "odd")),
)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@settings(max_examples=25)
def test_error_is_no_worse_than_twice_eagers(
    *,
    backend: KernelBackend,
    num_rows: int,
    num_chosen: int,
    num_groups: int,
    width: int,
    out: int,
    dtype: torch.dtype,
    kind: str,
    form: str,
) -> None:
    torch.manual_seed(num_rows * 100 + out)
    columns = 32 * width + (5 if form == "odd" else 0)
    weight, numbers = fill(
        draw_weights(num_groups, out, columns, dtype), backend, is_int4=form == "int4"
    )
    assert weight.kind == (
        "separate" if backend is TORCH else "triton_int4" if form == "int4" else "triton"
    )
    x = torch.randn(num_rows, columns).to(dtype)
    choice = choices(num_rows, num_chosen, num_groups, kind)
    truncated = backend is TRITON and form == "int4" and dtype == torch.bfloat16
    check(x, numbers, choice, run(x, weight, choice, backend, pad=4), truncated)


def test_the_reference_is_the_definition() -> None:
    numbers, x = draw_weights(3, 5, 7, torch.float32), torch.randn(4, 7)
    choice = torch.tensor([[2], [0], [2], [1]])
    got = reference.grouped_linear(x, numbers, choice.flatten())
    check(x, numbers, choice, got.unsqueeze(1))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_int4", [False, True])
def test_a_rows_bits_do_not_depend_on_who_shares_its_group(
    backend: KernelBackend, dtype: torch.dtype, is_int4: bool
) -> None:
    """Alone, in mixtures of every size, and with all rows in one group."""
    plain = draw_weights(5, 48, 64, dtype)
    plain[..., 32:] = plain[..., :32]  # sums that cancel show any change of order
    weight, _ = fill(plain, backend, is_int4=is_int4)
    pad = row_multiple(map(Product.of, weight.separate), backend=backend)
    assert pad is not None
    half = torch.randn(70, 32)
    x = torch.cat((half, -half), dim=1).to(dtype)
    choice = choices(70, 2, 5, "any")
    wanted = run(x, weight, choice, backend, pad)
    for start, count in ((0, 1), (3, 1), (0, 2), (5, 7), (1, 33), (6, 64)):
        part = slice(start, start + count)
        got = run(x[part], weight, choice[part], backend, pad)
        assert torch.equal(got, wanted[part]), (start, count)
    crowded = choice.clone()
    crowded[1:] = choice[0]
    assert torch.equal(run(x, weight, crowded, backend, pad)[0], wanted[0])


def test_int4_groups_lie_in_one_piece_of_memory_and_nothing_else_stays() -> None:
    """Beside what packing needs meanwhile, each for itself would leave holes that stay."""
    weight, _ = fill(torch.randn(8, 48, 64), TORCH, is_int4=True)
    wanted = {"weight": 8 * 48 * 32, "scale": 8 * 48 * 2 * 2}
    for name, num_bytes in wanted.items():
        storages = {getattr(one, name).untyped_storage().data_ptr() for one in weight.separate}
        assert len(storages) == 1
        assert getattr(weight.separate[0], name).untyped_storage().nbytes() == num_bytes
    assert weight.stacked is None
    assert weight.scale is None


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_only_groups_with_rows_are_read(backend: KernelBackend) -> None:
    """The other groups' weights are NaN, and on torch not even passed on."""
    plain = draw_weights(6, 16, 32, torch.float32)
    plain[torch.tensor([0, 2, 5])] = float("nan")
    weight, numbers = fill(plain, backend)
    x, choice = torch.randn(3, 32), torch.tensor([[1, 4], [3, 4], [1, 3]])
    got = run(x, weight, choice, backend, pad=4)
    check(x, numbers, choice, got)


@given(
    num_rows=st.integers(0, 9),
    num_terms=st.integers(1, 5),
    width=st.integers(1, 70),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    has_last=st.booleans(),
    padding=st.integers(0, 3),
)
@example(num_rows=4, num_terms=3, width=44, dtype=torch.float32, has_last=True, padding=0)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@settings(max_examples=25)
def test_rows_are_combined_in_float32_in_order(
    *,
    backend: KernelBackend,
    num_rows: int,
    num_terms: int,
    width: int,
    dtype: torch.dtype,
    has_last: bool,
    padding: int,
) -> None:
    torch.manual_seed(width)
    x = torch.randn(num_rows * num_terms + 2, width).to(dtype)
    before = x.clone()
    places = torch.randperm(x.shape[0])[: num_rows * num_terms].view(num_rows, num_terms)
    weights = torch.rand(num_rows, num_terms)
    padded = num_rows + padding
    last = torch.randn(padded, width).to(dtype) if has_last else None
    got = combine_rows(x, places, weights, last, num_rows=padded, backend=backend)
    wanted = combine_reference.combine_rows(x, places, weights, last, padded)
    assert torch.equal(x, before)
    assert got.shape == (padded, width)
    assert torch.equal(got[num_rows:], wanted[num_rows:])
    # Each of the two rounds its products and partial sums, none larger than `size`, by half a unit
    # of float32; product and sum may be fused. The interpreter truncates: one unit of the result's
    # type.
    size = torch.zeros(padded, width)
    size[:num_rows] = (x[places].float().abs() * weights.unsqueeze(-1)).sum(1)
    limit = torch.finfo(dtype).eps * wanted.float().abs() + 2 * num_terms * 2**-24 * size + 1e-30
    assert ((got.float() - wanted.float()).abs() <= limit).all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("width", [1, 7, 64, 512])
def test_terms_are_added_in_their_order_and_the_last_one_last(
    backend: KernelBackend, width: int
) -> None:
    """Large ones that cancel swallow a small one added between them, and keep one added after."""
    x = torch.tensor([1e9, 1.0, -1e9]).unsqueeze(1).expand(3, width).contiguous()
    places = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 0, 1]])
    got = combine_rows(x, places, torch.ones(4, 3), backend=backend)
    assert got[:, -1].tolist() == [0.0, 1.0, 0.0, 1.0]
    got = combine_rows(
        x, places[:, ::2].contiguous(), torch.ones(4, 2), x[1:2].expand(4, -1), backend=backend
    )
    assert got[0, 0].item() == 1.0
    assert torch.equal(got, got[:, :1].expand_as(got))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_combined_rows_bits_are_its_own(backend: KernelBackend) -> None:
    x, weights = torch.randn(60, 33), torch.rand(20, 3)
    places = torch.randperm(60).view(20, 3)
    wanted = combine_rows(x, places, weights, backend=backend)
    for t in range(20):
        got = combine_rows(x, places[t : t + 1], weights[t : t + 1], backend=backend)
        assert torch.equal(got[0], wanted[t])
