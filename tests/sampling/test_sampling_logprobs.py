"""Log probabilities: of the raw logits, of the right row, in the right order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.config import SamplingParams
from pilotfish.errors import PilotfishError
from pilotfish.sampling import (
    Sampler,
    SamplingRow,
    TokenHistory,
    prompt_logprobs,
    token_logprobs,
)
from pilotfish.sampling.mass import log_normalizer
from support.rows import row_after


def draw_logits(seed: int, rows: int, vocab_size: int, spread: float = 4.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 6.0, 40.0])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 49_153])
def test_no_further_from_float64_than_twice_the_float32_log_softmax(
    spread: float, vocab_size: int
) -> None:
    logits = draw_logits(3, 16, vocab_size, spread) + 5.0
    exact = logits.double().logsumexp(-1)
    largest = logits.amax(-1, keepdim=True)
    ours = (log_normalizer(logits, largest) - exact).abs().max()
    theirs = ((logits.double() - logits.log_softmax(-1).double()) - exact[:, None]).abs().max()
    assert ours <= 2 * theirs + 2.0**-23


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(0, 12), st.data())
def test_records_are_the_definition(
    seed: int, vocab_size: int, num_top: int, data: st.DataObject
) -> None:
    """Few distinct values, so that ties abound, at the border of the top list too."""
    logits = draw_logits(seed, 3, vocab_size, 1.5).round()
    tokens = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=3, max_size=3))
    exact = logits.double().log_softmax(-1)
    for row, token, record in zip(
        range(3), tokens, token_logprobs(logits, tokens, num_top), strict=True
    ):
        order = sorted(range(vocab_size), key=lambda i: (-float(logits[row, i]), i))
        assert record.token_id == token
        assert record.rank == order.index(token) + 1
        assert record.logprob == pytest.approx(float(exact[row, token]), abs=1e-6)
        assert [i for i, _ in record.top] == order[:num_top]
        assert [p for _, p in record.top] == pytest.approx(
            [float(exact[row, i]) for i in order[:num_top]], abs=1e-6
        )
        if record.rank <= num_top:
            assert record.top[record.rank - 1] == (token, record.logprob)


@pytest.mark.parametrize("vocab_size", [999, 33_001])
def test_a_record_depends_on_its_row_alone(vocab_size: int) -> None:
    logits = draw_logits(9, 7, vocab_size)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    together = token_logprobs(logits, tokens, 4)
    for row in range(7):
        alone = token_logprobs(logits[row : row + 1].clone(), tokens[row : row + 1], 4)
        assert alone == [together[row]]
        pair = token_logprobs(logits[[6 - row, row]], [0, tokens[row]], [0, 4])
        assert pair[1] == together[row]


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.lists(st.integers(1, 5), min_size=12, max_size=12),
)
def test_any_chunking_of_a_prompt_gives_the_same_records(
    seed: int, prompt: list[int], chunks: list[int]
) -> None:
    """Record i is of prompt token i + 1, told by row i."""
    logits = draw_logits(seed, len(prompt), 31)
    whole = prompt_logprobs(logits, prompt, 0, 2)
    assert [record.token_id for record in whole] == prompt[1:]
    exact = logits.double().log_softmax(-1)
    for i, record in enumerate(whole):
        assert record.logprob == pytest.approx(float(exact[i, prompt[i + 1]]), abs=1e-6)
    pieces, start = [], 0
    for size in chunks:
        pieces += prompt_logprobs(logits[start : start + size], prompt, start, 2)
        start = min(start + size, len(prompt))
    assert pieces == whole


def test_the_sampler_reports_raw_log_probabilities_of_the_rows_that_ask() -> None:
    logits = draw_logits(1, 4, 50)
    history = TokenHistory([1, 2], [3, 3])
    edits = {"presence_penalty": 2.0, "logit_bias": {7: 30.0}, "top_k": 3}
    asked = [None, 2, 0, None]
    rows = [
        row_after(
            history, SamplingParams(temperature=t, logprobs=n, **edits), seed=4, request_id=str(n)
        )
        for t, n in zip([0.5, 0.5, 0.0, 0.0], asked, strict=True)
    ]
    sampled = Sampler().sample(logits, rows)
    assert [record is None for record in sampled.logprobs] == [n is None for n in asked]
    exact = logits.double().log_softmax(-1)
    for row, record in enumerate(sampled.logprobs):
        token = int(sampled.token_ids[row])
        if record is not None:
            assert record.token_id == token
            assert record.logprob == pytest.approx(float(exact[row, token]), abs=1e-6)
            assert len(record.top) == asked[row]
            assert (
                list(record.top) == list(token_logprobs(logits, [0] * 4, 2)[row].top)[: asked[row]]
            )


def test_asking_for_log_probabilities_does_not_change_the_token() -> None:
    logits = draw_logits(2, 40, 300)
    tokens = []
    for asked in (None, 3):
        params = SamplingParams(logprobs=asked)
        rows = [SamplingRow(params=params, seed=8, position=i) for i in range(40)]
        tokens.append(Sampler().sample(logits, rows).token_ids)
    assert torch.equal(*tokens)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_without_probabilities_are_refused(value: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = value
    with pytest.raises(PilotfishError, match="row 1"):
        token_logprobs(logits, [0, 0, 0], 1)
    with pytest.raises(PilotfishError, match="row 0"):
        token_logprobs(torch.full((1, 5), -math.inf), [0], 1)


def test_masked_tokens_have_no_mass() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    (record,) = token_logprobs(logits, [1], 3)
    assert record.logprob == -math.inf
    assert record.rank == 3
    assert record.top[0] == (0, pytest.approx(math.log(0.5)))
    assert token_logprobs(torch.empty(0, 4), [], 2) == []
