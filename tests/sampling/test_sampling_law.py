"""The law of the sampled tokens is softmax of the processed logits: chi-squared, entropy, support.

The expected law is computed here in float64 from the definitions, not by the code under test.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from pilotfish.config import SamplingParams
from pilotfish.sampling import Sampler, SamplingRow, TokenHistory, gumbel_at

NUM_DRAWS = 6000
SMALLEST_P = 1e-4


def probs(logits: np.ndarray, params: SamplingParams, history: tuple[list[int], list[int]]):  # type: ignore[no-untyped-def]
    """[V] float64: bias, penalties, temperature, top_k, top_p, min_p, by the book."""
    prompt, output = history
    values = logits.astype(np.float64).copy()
    for token, bias in params.logit_bias.items():
        values[token] += bias
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in Counter(output).items():
        values[token] -= count * params.frequency_penalty + params.presence_penalty
    weights = np.exp((values - values.max()) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    stays = len(order) if params.top_k < 0 else min(params.top_k, len(order))
    share = weights[order[:stays]] / weights[order[:stays]].sum()
    before = np.cumsum(share) - share
    stays = int((before < params.top_p).sum()) if params.top_p < 1.0 else stays
    stays = min(stays, int((weights >= params.min_p).sum()))
    result = np.zeros_like(weights)
    result[order[:stays]] = weights[order[:stays]]
    return result / result.sum()


def draw(logits: torch.Tensor, rows: list[SamplingRow]) -> np.ndarray:
    """[V] how often each token came; logits: [1, V] or one row each. In batches of some rows."""
    all_logits = logits.expand(len(rows), -1)
    size = max(1, 30_000 // logits.shape[-1])
    tokens = [
        Sampler().sample(all_logits[i : i + size], rows[i : i + size]).token_ids
        for i in range(0, len(rows), size)
    ]
    return np.bincount(torch.cat(tokens).numpy(), minlength=logits.shape[-1])


def assert_drawn_from(counts: np.ndarray, expected: np.ndarray) -> None:
    assert counts[expected == 0.0].sum() == 0
    total = counts.sum()
    big = expected * total >= 5.0
    observed = [*counts[big], counts[~big].sum()]
    wanted = [*expected[big] * total, expected[~big].sum() * total]
    if wanted[-1] < 5.0:  # too few to test alone: join them to the least of the others
        least = int(np.argmin(wanted[:-1]))
        observed[least] += observed.pop()
        wanted[least] += wanted.pop()
    if len(wanted) > 1:
        assert stats.chisquare(observed, wanted).pvalue > SMALLEST_P
    else:
        assert observed[0] == total


def options(index: int) -> SamplingParams:
    """A drawn set of options; the draws are fixed, so that the test cannot flicker."""
    random = np.random.default_rng(index)

    def some(*choices: float) -> float:
        return float(random.choice(choices))

    return SamplingParams(
        temperature=some(0.4, 0.8, 1.0, 1.6),
        top_k=int(some(-1, -1, 2, 4, 6)),
        top_p=some(1.0, 1.0, 0.55, 0.9),
        min_p=some(0.0, 0.0, 0.1),
        presence_penalty=some(0.0, 0.0, 0.7, -0.6),
        frequency_penalty=some(0.0, 0.0, 0.4),
        repetition_penalty=some(1.0, 1.0, 1.3, 0.8),
        logit_bias=[{}, {1: 0.9, 3: -1.1}][index % 2],
    )


@pytest.mark.parametrize("index", range(16))
@pytest.mark.parametrize("along", ["position", "seed"])
def test_tokens_follow_the_law(index: int, along: str) -> None:
    """V <= 8, drawn options; one request over its positions, and many requests at one position."""
    vocab_size = 2 + index % 7
    generator = torch.Generator().manual_seed(100 + index)
    logits = torch.randn(1, vocab_size, generator=generator) * 1.3
    params = options(index)
    params = params if vocab_size > 3 else SamplingParams(temperature=params.temperature)
    history = ([0, 1, 1], [1, 0, 1])
    shared = TokenHistory(*history)
    rows = [
        SamplingRow(
            params=params,
            seed=index if along == "position" else i,
            position=i if along == "position" else 6,
            history=shared,
        )
        for i in range(NUM_DRAWS)
    ]
    expected = probs(logits[0].numpy(), params, history)
    assert_drawn_from(draw(logits, rows), expected)
    processed = Sampler().process_logits(logits, rows[:1])[0].double().softmax(0).numpy()
    np.testing.assert_allclose(processed, expected, atol=1e-6)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=200, top_p=0.97)])
def test_tokens_follow_the_law_of_a_larger_vocabulary(params: SamplingParams) -> None:
    logits = torch.randn(1, 1500, generator=torch.Generator().manual_seed(1)) * 2.0
    rows = [SamplingRow(params=params, seed=3, position=i) for i in range(NUM_DRAWS)]
    assert_drawn_from(draw(logits, rows), probs(logits[0].numpy(), params, ([], [])))


@pytest.mark.parametrize("top_k", [-1, 5])
def test_temperature_sets_the_entropy(top_k: int) -> None:
    """Mean of -log p of the drawn tokens is the entropy, within five standard errors."""
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(2)) * 2.0
    entropies = []
    for temperature in (0.1, 1.0, 2.0):
        params = SamplingParams(temperature=temperature, top_k=top_k)
        expected = probs(logits[0].numpy(), params, ([], []))
        rows = [SamplingRow(params=params, seed=7, position=i) for i in range(NUM_DRAWS)]
        counts = draw(logits, rows)
        surprise = -np.log(np.maximum(expected, 1e-300))
        entropy = float((expected * surprise).sum())
        variance = float((expected * surprise**2).sum()) - entropy**2
        error = math.sqrt(max(variance, 0.0) / NUM_DRAWS)
        assert abs((counts * surprise).sum() / NUM_DRAWS - entropy) <= 5 * error + 1e-12
        entropies.append(entropy)
    assert entropies[0] < entropies[1] / 2 < entropies[1] < entropies[2]


def test_cold_temperatures_reach_the_greedy_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9]])
    for temperature in (0.0, 9e-6, 2e-5, 1e-3):
        rows = [
            SamplingRow(params=SamplingParams(temperature=temperature), seed=i, position=2)
            for i in range(200)
        ]
        assert draw(logits, rows).tolist() == [0, 200, 0]


def test_greedy_rows_have_no_noise_beside_noisy_ones() -> None:
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(3)).expand(400, -1)
    rows = [
        SamplingRow(params=SamplingParams(temperature=float(i % 2)), seed=i, position=0)
        for i in range(400)
    ]
    tokens = Sampler().sample(logits, rows).token_ids
    assert (tokens[::2] == logits[0].argmax()).all()
    assert tokens[1::2].unique().numel() > 3


def test_shared_noise_couples_a_draft_to_its_target() -> None:
    """A draft that adds the target's noise agrees far more often than an independent one, and its
    own token still follows its own law, through a map of ids as well."""
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(1, 8, generator=generator) * 1.5
    draft_ids = target[0].topk(6).indices.flip(0)  # draft token i is the target's draft_ids[i]
    draft = target[:, draft_ids] + 0.3 * torch.randn(1, 6, generator=generator)
    rows = [SamplingRow(params=SamplingParams(), seed=11, position=i) for i in range(NUM_DRAWS)]
    positions = torch.arange(NUM_DRAWS)
    noise = gumbel_at(torch.full((NUM_DRAWS,), 11), positions, draft_ids.expand(NUM_DRAWS, -1))
    proposed = (draft + noise).argmax(-1)
    expected = draft[0].double().softmax(0).numpy()
    assert_drawn_from(np.bincount(proposed.numpy(), minlength=6), expected)
    sampled = Sampler().sample(target.expand(NUM_DRAWS, -1), rows).token_ids
    agreed = float((draft_ids[proposed] == sampled).double().mean())
    p, q = target[0].double().softmax(0).numpy(), np.zeros(8)
    q[draft_ids.numpy()] = expected
    independent, best = float((p * q).sum()), float(np.minimum(p, q).sum())
    # Gumbel coupling: at least best / (2 - best), Daliri et al. 2024, and at most best
    error = 5 * math.sqrt(0.25 / NUM_DRAWS)
    assert best / (2 - best) - error <= agreed <= best + error
    assert independent + error < best / (2 - best) - error  # so that the bound tells them apart
