"""Truncation against Hugging Face's processors, a naive formula in float64, and planted ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pilotfish.sampling import Truncation, truncate_
from pilotfish.sampling.truncation import find_cuts

options_st = st.builds(
    Truncation,
    top_k=st.one_of(st.just(-1), st.integers(1, 12), st.integers(100, 3000)),
    top_p=st.one_of(st.just(1.0), st.floats(0.001, 0.9999)),
    min_p=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
)


def kept(logits: torch.Tensor, options: list[Truncation]) -> list[set[int]]:
    work = logits.clone()
    truncate_(work, options)
    stays = work > -math.inf
    assert torch.equal(work[stays], logits[stays])
    return [set(row.nonzero()[:, 0].tolist()) for row in stays]


def draw_logits(seed: int, rows: int, vocab_size: int, spread: float) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def naive(row: torch.Tensor, option: Truncation, slack: float) -> tuple[int, int]:
    """The shortest and longest prefix that the definitions allow, top_p within `slack`."""
    values = np.sort(row.double().numpy())[::-1]
    count = len(values) if option.top_k < 0 else min(option.top_k, len(values))
    weights = np.exp(values - values[0])
    low = high = count
    if option.top_p < 1.0:
        before = np.cumsum(weights[:count]) - weights[:count]
        before /= weights[:count].sum()
        low = max(1, int((before < option.top_p - slack).sum()))
        high = int((before < option.top_p + slack).sum())
    passed_low = int((weights >= option.min_p * (1 + slack)).sum())
    passed_high = int((weights >= option.min_p * (1 - slack)).sum())
    if option.min_p > 0.0:
        low, high = min(low, max(1, passed_low)), min(high, passed_high)
    return low, high


@given(
    st.integers(0, 2**31),
    st.integers(1, 4000),
    st.floats(0.05, 8.0),
    st.lists(options_st, min_size=1, max_size=4),
)
def test_truncation_is_the_definition(
    seed: int, vocab_size: int, spread: float, options: list[Truncation]
) -> None:
    logits = draw_logits(seed, len(options), vocab_size, spread)
    for row, option, ids in zip(logits, options, kept(logits, options), strict=True):
        low, high = naive(row, option, slack=2e-6)
        assert low <= len(ids) <= high
        order = sorted(range(vocab_size), key=lambda i: (-float(row[i]), i))
        assert ids == set(order[: len(ids)])


@given(st.integers(0, 2**31), st.integers(2, 1500), options_st)
def test_truncation_agrees_with_hugging_face(
    seed: int, vocab_size: int, option: Truncation
) -> None:
    logits = draw_logits(seed, 3, vocab_size, 3.0)
    want = logits.clone()
    ids = torch.zeros(3, 1, dtype=torch.int64)
    if option.top_k > 0:
        want = TopKLogitsWarper(option.top_k)(ids, want)
    if option.top_p < 1.0:
        want = TopPLogitsWarper(option.top_p)(ids, want)
    if option.min_p > 0.0:
        want = MinPLogitsWarper(option.min_p)(ids, want)
    got = kept(logits, [option] * 3)
    for row, stays in enumerate(got):
        low, high = naive(logits[row], option, slack=2e-6)
        reference = set((want[row] > -math.inf).nonzero()[:, 0].tolist())
        if low == high:  # else the cut lies within rounding of a token's edge
            assert stays == reference


def test_most_drawn_cuts_are_decided() -> None:
    """The slack of the two tests above leaves nearly every case with one right answer."""
    logits = draw_logits(7, 200, 1000, 3.0)
    option = Truncation(top_k=300, top_p=0.83, min_p=0.002)
    decided = sum(len({*naive(row, option, 2e-6)}) == 1 for row in logits)
    assert decided >= 198


def test_ties_keep_the_lowest_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(logits, [Truncation(top_k=1)]) == [{1}]
    assert kept(logits, [Truncation(top_k=3)]) == [{1, 2, 3}]
    assert kept(logits, [Truncation(top_k=4)]) == [{1, 2, 3, 4}]
    flat = torch.zeros(1, 1000)
    assert kept(flat, [Truncation(top_k=7)]) == [set(range(7))]
    assert kept(flat, [Truncation(top_p=0.25)]) == [set(range(250))]
    assert kept(flat, [Truncation(min_p=1.0)]) == [set(range(1000))]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=300), options_st)
def test_ties_everywhere(values: list[int], option: Truncation) -> None:
    logits = torch.tensor([values], dtype=torch.float32)
    (ids,) = kept(logits, [option])
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert ids == set(order[: len(ids)])
    low, high = naive(logits[0], option, slack=2e-6)
    assert low <= len(ids) <= high


def test_edges_of_top_p() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert kept(logits, [Truncation(top_p=0.4999)]) == [{0}]
    assert kept(logits, [Truncation(top_p=0.5001)]) == [{0, 1}]
    assert kept(logits, [Truncation(top_p=0.7501)]) == [{0, 1, 2}]
    assert kept(logits, [Truncation(top_p=1e-9)]) == [{0}]
    assert kept(logits, [Truncation(top_k=2, top_p=0.6)]) == [{0}]  # 2/3 of what top_k left
    assert kept(logits, [Truncation(top_k=2, top_p=0.67)]) == [{0, 1}]
    assert kept(logits, [Truncation(top_p=0.6)]) == [{0, 1}]


def test_masked_tokens_stay_masked() -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.0]])
    for option in (
        Truncation(top_k=3),
        Truncation(top_p=0.9999999),
        Truncation(min_p=1e-9),
        Truncation(top_k=4, top_p=0.99),
    ):
        assert kept(logits, [option]) == [{1, 3}]


@given(st.integers(0, 2**31), st.lists(options_st, min_size=2, max_size=6))
def test_a_row_is_cut_alike_beside_any_others(seed: int, options: list[Truncation]) -> None:
    """Odd vocabulary, flat and peaked rows mixed, so that some rows need many tokens."""
    logits = draw_logits(seed, len(options), 5003, 1.0)
    logits *= torch.logspace(-1, 1, len(options))[:, None]
    together = find_cuts(logits, options)
    for row, option in enumerate(options):
        assert find_cuts(logits[row : row + 1].clone(), [option]) == [together[row]]
    backwards = find_cuts(logits.flip(0), options[::-1])
    assert backwards[::-1] == together


def test_a_cut_does_not_depend_on_where_its_order_was_found() -> None:
    """topk of a few, of many and the whole sort tell the same cut."""
    from pilotfish.sampling.truncation import _cuts_within

    logits = draw_logits(3, 4, 6007, 2.5)
    options = [
        Truncation(top_p=0.3),
        Truncation(top_k=90, top_p=0.7),
        Truncation(min_p=0.2),
        Truncation(top_k=17),
    ]
    found = [_cuts_within(logits, options, width) for width in (1000, 1024, 1025, 5000, 6007)]
    assert all(cut is not None for cut in found[0])
    assert all(cuts == found[0] for cuts in found)


@pytest.mark.parametrize("vocab_size", [127, 128, 129, 2048, 2049])
def test_widths_around_the_steps(vocab_size: int) -> None:
    flat = torch.zeros(2, vocab_size)
    flat[1, 0] = 1e-3
    for count in (1, 127, 128, 129, vocab_size - 1):
        wanted = min(count, vocab_size)
        assert [len(ids) for ids in kept(flat, [Truncation(top_k=count)] * 2)] == [wanted] * 2
        share = (wanted - 0.5) / vocab_size
        assert len(kept(flat[:1], [Truncation(top_p=share)])[0]) == wanted
