"""Naive oracles: an answer from the definitions, everything computed anew for every token.

Knows: what a token is by definition. Does not know: engines, caches, batches; shares with the
sampler the noise only, which is a definition too.
Axis letters: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import attrs
import torch

from pilotfish.config import SamplingParams
from pilotfish.sampling import gumbel


@attrs.frozen(kw_only=True)
class NaiveAnswer:
    """tokens: of the answer. reason: "stop" or "length". logprobs: one number a token."""

    tokens: list[int]
    reason: str
    logprobs: list[float]


def naive_answer(
    logits_after: Callable[[list[int]], torch.Tensor],
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    end_ids: Collection[int] = (),
    max_seq_len: int = 1 << 30,
) -> NaiveAnswer:
    """What one request must say.

    logits_after: a text -> [V] float32, the model's logits after it, computed from scratch.
    params: with a seed. end_ids: the model's own end tokens.
    """
    ends = {*params.stop_token_ids} | (set() if params.ignore_eos else set(end_ids))
    answer, logprobs = list[int](), list[float]()
    while True:
        logits = logits_after([*prompt, *answer]).float().cpu()
        banned = ends if len(answer) < params.min_tokens else set()
        token = naive_token(logits, prompt, answer, params, banned)
        answer.append(token)
        logprobs.append(float(torch.log_softmax(logits.double(), 0)[token]))
        if token in ends and len(answer) >= params.min_tokens:
            return NaiveAnswer(tokens=answer, reason="stop", logprobs=logprobs)
        if len(answer) == params.max_tokens or len(prompt) + len(answer) >= max_seq_len:
            return NaiveAnswer(tokens=answer, reason="length", logprobs=logprobs)


def naive_token(
    logits: torch.Tensor,
    prompt: Sequence[int],
    answer: Sequence[int],
    params: SamplingParams,
    banned: Collection[int] = (),
) -> int:
    """The token after prompt and answer: argmax(edited logits / T + noise), lowest id on ties.

    logits: [V] float32.
    """
    scores = naive_edits(logits, prompt, answer, params, banned)
    if params.temperature < 1e-5:
        return _first_best(scores)
    scores = scores / params.temperature
    kept = naive_kept(scores, params)
    position = torch.tensor([len(prompt) + len(answer)])
    noise = gumbel(torch.tensor([params.seed or 0]), position, len(scores))[0]
    return _first_best(torch.where(kept, scores + noise, -math.inf))


def naive_edits(
    logits: torch.Tensor,
    prompt: Sequence[int],
    answer: Sequence[int],
    params: SamplingParams,
    banned: Collection[int] = (),
) -> torch.Tensor:
    """[V] float32: bias, repetition, frequency, presence, banned tokens, in this order."""
    scores = logits.clone()
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in {*prompt, *answer}:
        value = scores[token]
        scores[token] = (
            value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        )
    for token in set(answer):
        scores[token] -= answer.count(token) * params.frequency_penalty
        scores[token] -= params.presence_penalty
    for token in banned:
        scores[token] = -math.inf
    return scores


def naive_kept(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[V] bool: the tokens that top_k, top_p and min_p leave.

    scores: [V] float32, divided by the temperature. Each option keeps a beginning of the order by
    score, lowest id first among equals; top_p counts the mass of what top_k left.
    """
    order = sorted(range(len(scores)), key=lambda token: (-float(scores[token]), token))
    length = len(order) if params.top_k < 0 else min(params.top_k, len(order))
    probs = torch.softmax(scores.double(), 0)
    total = sum(float(probs[token]) for token in order[:length])
    count, before = 0, 0.0
    while count < length and (count == 0 or before < params.top_p * total):
        before += float(probs[order[count]])
        count += 1
    least = params.min_p * float(probs[order[0]])
    kept = torch.zeros(len(scores), dtype=torch.bool)
    for place, token in enumerate(order[:count]):
        kept[token] = place == 0 or float(probs[token]) >= least
    return kept


def _first_best(scores: torch.Tensor) -> int:
    best = float(scores.max())
    return next(token for token, score in enumerate(scores.tolist()) if score == best)
