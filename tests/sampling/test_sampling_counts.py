"""Accepted drafts are counted alike by the kernel, for a GPU, and on the host."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.batch import Proposal
from pilotfish.config import SamplingParams
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.count_accepted import count_accepted
from pilotfish.sampling import SamplingRow
from pilotfish.speculation.acceptance import VerifyRequest, _count_here, _pack_drafts

tokens_st = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(st.tuples(tokens_st, tokens_st), min_size=1, max_size=5), st.integers(0, 2))
def test_both_ways_to_count_agree(pairs: list[tuple[list[int], list[int]]], bonus: int) -> None:
    row = SamplingRow(params=SamplingParams(), seed=0, position=0)
    requests, tokens = [], []
    for drafts, sampled in pairs:
        requests.append(
            VerifyRequest(rows=[row] * (len(drafts) + 1), draft=Proposal(tokens=drafts))
        )
        tokens += [*(sampled + [7] * 6)[: len(drafts)], bonus]
    counts = _count_here(tokens, requests)
    packed = _pack_drafts(requests, torch.device("cpu"))
    kernel = count_accepted(torch.tensor(tokens), *packed, backend=KernelBackend("torch"))
    assert counts == kernel.tolist()
