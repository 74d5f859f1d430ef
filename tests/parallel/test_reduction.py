"""Sums over slices: one tree, whoever holds the slices."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, PilotfishError
from pilotfish.parallel.collectives import all_gather, all_gather_columns, gather_columns
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.reduction import all_reduce, goes_in_parts, halves, nodes_within
from pilotfish.parallel.threads import run_ranks, thread_groups


def terms_of(num_slices: int, seed: int, width: int = 5) -> list[torch.Tensor]:
    """Of many magnitudes, so that another order gives other bits."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, width, generator=generator) * 10.0 ** (slice_ % 5)
        for slice_ in range(num_slices)
    ]


def tree_sum(terms: list[torch.Tensor]) -> torch.Tensor:
    """The definition: the larger half first."""
    if len(terms) == 1:
        return terms[0]
    middle = (len(terms) + 1) // 2
    return tree_sum(terms[:middle]) + tree_sum(terms[middle:])


def reduced(num_slices: int, size: int, seed: int, width: int = 5) -> list[torch.Tensor]:
    """The sum that every rank gets."""
    config = ParallelConfig(tensor_parallel=size, reduction_slices=num_slices)

    def run(groups: Groups) -> torch.Tensor:
        own = groups.tensor.share(num_slices)
        terms = terms_of(num_slices, seed, width)[own.start : own.stop]
        return all_reduce(groups.tensor, terms, num_slices)

    return run_ranks(thread_groups(config), run)


@given(each=st.integers(1, 5), size=st.integers(1, 8), seed=st.integers(0, 99))
def test_any_number_of_ranks_gives_the_bits_of_the_tree(each: int, size: int, seed: int) -> None:
    wanted = tree_sum(terms_of(each * size, seed))
    for found in reduced(each * size, size, seed):
        assert torch.equal(found, wanted)


@settings(max_examples=15)
@given(each=st.integers(1, 3), size=st.integers(2, 5), width=st.sampled_from((5500, 6001)))
def test_large_terms_go_in_parts_and_have_the_same_bits(each: int, size: int, width: int) -> None:
    assert goes_in_parts(size, 3 * width) == (size > 2)
    wanted = tree_sum(terms_of(each * size, 0, width))
    for found in reduced(each * size, size, 0, width):
        assert torch.equal(found, wanted)


def test_another_order_has_other_bits() -> None:
    terms = terms_of(8, seed=0)
    assert not torch.equal(sum(terms[1:], start=terms[0]), tree_sum(terms))


@given(num_slices=st.integers(1, 24), data=st.data())
def test_a_rank_joins_all_that_lies_within_its_slices(num_slices: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, num_slices - 1))
    held = (first, data.draw(st.integers(first + 1, num_slices)))
    found = nodes_within((0, num_slices), held)
    covered = [place for node in found for place in range(*node)]
    assert covered == list(range(*held))
    waiting = [(0, num_slices)]
    while waiting:
        node = waiting.pop()
        if node[1] - node[0] > 1:
            both = halves(node)
            assert not set(both) <= set(found), "it could have joined them"
            waiting += both


def test_ranks_of_a_power_of_two_send_one_node_each() -> None:
    for size in (1, 2, 4, 8):
        held = [(rank * 8 // size, (rank + 1) * 8 // size) for rank in range(size)]
        assert [nodes_within((0, 8), one) for one in held] == [(one,) for one in held]


def test_one_rank_needs_no_transport() -> None:
    x = torch.ones(2, 3)
    assert all_gather(Group(), x)[0] is x
    assert gather_columns(Group(), x, 3) is x


def test_ranks_that_are_not_connected_say_so() -> None:
    with pytest.raises(PilotfishError, match="rank 1 of 2 is not connected"):
        all_gather(Group(1, 2), torch.ones(1))


@given(width=st.integers(1, 20), size=st.integers(1, 5))
def test_columns_come_together_in_order(width: int, size: int) -> None:
    whole = torch.arange(2 * width).view(2, width)

    def run(groups: Groups) -> tuple[torch.Tensor, torch.Tensor | None]:
        own = groups.tensor.share(width)
        part = whole[:, own.start : own.stop]
        return (
            all_gather_columns(groups.tensor, part, width),
            gather_columns(groups.tensor, part, width),
        )

    ranks = run_ranks(thread_groups(ParallelConfig(tensor_parallel=size)), run)
    for rank, (everywhere, first) in enumerate(ranks):
        assert torch.equal(everywhere, whole)
        assert (first is None) == (rank > 0)
    assert torch.equal(ranks[0][1], whole)  # type: ignore[arg-type]


def test_a_rank_that_fails_ends_the_others() -> None:
    def run(groups: Groups) -> None:
        if groups.tensor.rank == 1:
            raise ValueError("rank 1 has had enough")
        all_gather(groups.tensor, torch.ones(1))

    with pytest.raises(ValueError, match="has had enough"):
        run_ranks(thread_groups(ParallelConfig(tensor_parallel=3)), run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel": 2, "reduction_slices": 3}, "wanted a multiple of 2"),
        ({"tensor_parallel": 4, "expert_parallel": 3}, "wanted a divisor of 4"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"rank_timeout": 0}, "rank_timeout is 0"),
        ({"distributed": "mpi"}, "distributed is 'mpi'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        partial(ParallelConfig, **options)()
