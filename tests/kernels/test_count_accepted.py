"""count_accepted: both backends against the definition, over ragged batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.count_accepted import count_accepted, reference

count_accepted = placed(count_accepted)

TORCH, TRITON = KernelBackend("torch"), KernelBackend("triton")

Request = list[tuple[int, int]]


def ragged(requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each request's (token, draft) pairs; the last draft is not read."""
    flat = torch.tensor([pair for request in requests for pair in request]).reshape(-1, 2)
    offsets = [0]
    for request in requests:
        offsets.append(offsets[-1] + len(request))
    return flat[:, 0].clone(), flat[:, 1].clone(), torch.tensor(offsets, dtype=torch.int32)


def batches(longest: int) -> st.SearchStrategy[list[Request]]:
    ids = st.integers(0, 1) | st.just(2**40)
    request = st.lists(st.tuples(ids, ids), min_size=1, max_size=longest)
    return st.lists(request, min_size=1, max_size=5)


def check(requests: list[Request], backend: KernelBackend) -> None:
    rows = ragged(requests)
    got = count_accepted(*rows, backend=backend)
    assert torch.equal(got, reference.count_accepted(*rows))
    for request, count in zip(requests, got.tolist(), strict=True):
        assert torch.equal(
            count_accepted(*ragged([request]), backend=backend)[0], got.new_tensor(count)
        )


@given(requests=batches(9))
def test_torch_counts_as_the_definition(requests: list[Request]) -> None:
    check(requests, TORCH)


@pytest.mark.parametrize("agreeing", [0, 1, 15, 16, 17, 33])
@pytest.mark.parametrize("num_drafts", [0, 1, 16, 17, 40])
def test_triton_counts_as_the_definition(agreeing: int, num_drafts: int) -> None:
    first = [(5, 5)] * agreeing + [(5, 6)] * max(0, num_drafts - agreeing)
    check([[*first[:num_drafts], (7, 7)], [(1, 1)], [(2, 3), (4, 4)]], TRITON)


@pytest.mark.parametrize("backend", [TORCH, TRITON])
def test_the_bonus_row_is_not_judged(backend: KernelBackend) -> None:
    tokens, drafts, offsets = ragged([[(1, 1), (2, 2), (3, 3)], [(9, 9)]])
    assert count_accepted(tokens, drafts, offsets, backend=backend).tolist() == [2, 0]


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted one"):
        count_accepted(
            torch.zeros(2).long(), torch.zeros(3).long(), torch.tensor([0, 2]), backend=TORCH
        )
