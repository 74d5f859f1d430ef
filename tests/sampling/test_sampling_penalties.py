"""Penalties, bias and bans against naive formulas and Hugging Face; drafts see their own prefix."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from pilotfish.config import SamplingParams
from pilotfish.errors import RequestError
from pilotfish.sampling import Sampler, SamplingRow, TokenHistory
from pilotfish.sampling.penalties import penalize_
from support.rows import row_after

VOCAB = 23
ids_st = st.lists(st.integers(0, VOCAB - 1), max_size=30)
params_st = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]) | st.floats(-2, 2),
    frequency_penalty=st.sampled_from([0.0, 0.5]) | st.floats(-2, 2),
    repetition_penalty=st.sampled_from([1.0, 1.3]) | st.floats(0.2, 5),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32)),
    min_tokens=st.integers(0, 20),
)


def naive(
    logits: list[float], params: SamplingParams, prompt: list[int], output: list[int]
) -> list[float]:
    counts = Counter(output)
    seen = set(prompt) | set(output)
    result = []
    for token, logit in enumerate(logits):
        value = logit + params.logit_bias.get(token, 0.0)
        if token in seen:
            factor = params.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= counts[token] * params.frequency_penalty
        value -= (counts[token] > 0) * params.presence_penalty
        result.append(value)
    return result


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4


@given(st.integers(0, 2**31), params_st, ids_st, ids_st, ids_st)
def test_edits_are_the_definition(
    seed: int, params: SamplingParams, prompt: list[int], output: list[int], draft: list[int]
) -> None:
    logits = logits_of(seed)
    stops = [3, 5]
    row = row_after(TokenHistory(prompt, output), params, seed=1, draft_ids=draft, stop_ids=stops)
    got = Sampler().process_logits(logits, [row])[0].tolist()
    want = naive(logits[0].tolist(), params, prompt, output + draft)
    if len(output) + len(draft) < params.min_tokens:
        for token in stops:
            want[token] = -math.inf
    if not params.is_greedy:
        want = [value / params.temperature for value in want]
    scale = max(1.0, *(abs(value) for value in want if math.isfinite(value)))
    assert got == pytest.approx(want, abs=1e-6 * scale)  # float32, at most six roundings


@given(st.integers(0, 2**31), st.floats(0.1, 5), ids_st.filter(bool))
def test_repetition_agrees_with_hugging_face(seed: int, penalty: float, ids: list[int]) -> None:
    logits = logits_of(seed)
    half = len(ids) // 2
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    row = row_after(TokenHistory(ids[:half], ids[half:]), params, seed=1)
    want = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits.clone())
    assert torch.equal(Sampler().process_logits(logits, [row]), want)


@given(st.integers(0, 2**31), params_st, ids_st, ids_st, st.lists(st.integers(0, VOCAB - 1)))
def test_a_verify_row_equals_the_row_of_plain_decoding(
    seed: int, params: SamplingParams, prompt: list[int], output: list[int], draft: list[int]
) -> None:
    """Row i sees prompt + committed + draft[:i]: bit for bit what it would see if committed."""
    logits = logits_of(seed, len(draft) + 1)
    committed = TokenHistory(prompt, output)
    rows = [
        row_after(committed, params, seed=6, draft_ids=draft[:i], stop_ids=[2])
        for i in range(len(draft) + 1)
    ]
    together = Sampler().process_logits(logits, rows)
    sampled = Sampler().sample(logits, rows).token_ids
    grown = TokenHistory(prompt, output)
    for i, token in enumerate([*draft, None]):
        row = row_after(grown, params, seed=6, stop_ids=[2])
        assert row.position == rows[i].position == len(prompt) + len(output) + i
        alone = Sampler().process_logits(logits[i : i + 1], [row])
        assert torch.equal(alone[0], together[i])
        assert Sampler().sample(logits[i : i + 1], [row]).token_ids[0] == sampled[i]
        if token is not None:
            grown.append(token)


@given(ids_st, ids_st, ids_st)
def test_history_counts(prompt: list[int], output: list[int], draft: list[int]) -> None:
    history = TokenHistory(prompt)
    for token in output:
        history.append(token)
    for extra in (draft, [], draft):  # a draft leaves no trace
        ids, counts = history.counts_with(extra)
        found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        assert len(found) == len(ids)
        want = dict.fromkeys(prompt, 0) | dict(Counter(output + extra))
        assert found == want
    assert history.num_tokens == len(prompt) + len(output)
    assert history.num_output_tokens == len(output)


def test_the_prompt_counts_for_repetition_only() -> None:
    logits = torch.zeros(4)
    logits += 1.0
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=2.0)
    penalize_(logits, params, TokenHistory([0, 0], [1, 1]))
    assert logits.tolist() == [0.5, 0.5 - 1.0 - 1.0, 1.0, 1.0]


def test_the_logits_given_are_not_changed() -> None:
    logits = logits_of(3, 2)
    before = logits.clone()
    params = SamplingParams(presence_penalty=1.0, logit_bias={1: 5.0}, top_k=2)
    row = row_after(TokenHistory([1], [2]), params, seed=0)
    Sampler().sample(logits, [row, row])
    Sampler().process_logits(logits, [row, row])
    assert torch.equal(logits, before)


def test_stop_tokens_are_banned_until_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 50.0
    params = SamplingParams(temperature=0, min_tokens=2)
    for draft in ([], [1], [1, 1]):
        row = row_after(TokenHistory([4, 4, 4], [9]), params, seed=0, draft_ids=draft, stop_ids=[7])
        token = int(Sampler().sample(logits, [row]).token_ids)
        assert (token == 7) == (1 + len(draft) >= 2)


@pytest.mark.parametrize("bias", [{VOCAB: 1.0}, {VOCAB + 9: -1.0}])
def test_ids_outside_the_vocabulary_are_refused(bias: dict[int, float]) -> None:
    row = SamplingRow(params=SamplingParams(logit_bias=bias), seed=0, position=0)
    with pytest.raises(RequestError, match=f"token id {max(bias)}.*0 to {VOCAB - 1}"):
        Sampler().sample(logits_of(0), [row])


def test_penalties_without_history_are_refused() -> None:
    row = SamplingRow(params=SamplingParams(presence_penalty=1.0), seed=0, position=0)
    with pytest.raises(ValueError, match="no history"):
        Sampler().sample(logits_of(0), [row])


def test_the_default_dtype_changes_nothing() -> None:
    logits = logits_of(5)
    params = SamplingParams(presence_penalty=0.3, frequency_penalty=0.1, repetition_penalty=1.1)
    row = row_after(TokenHistory([1, 2], [2, 3, 3]), params, seed=0)
    sampler = Sampler()
    want, token = sampler.process_logits(logits, [row]), sampler.sample(logits, [row]).token_ids
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(sampler.process_logits(logits, [row]), want)
        assert torch.equal(sampler.sample(logits, [row]).token_ids, token)
    finally:
        torch.set_default_dtype(default)
