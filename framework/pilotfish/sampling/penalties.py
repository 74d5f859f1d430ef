"""Edits of one row's logits by what the request has said: penalties, bias, banned tokens.

Knows: the token history of a request and the four edits. Does not know: batches or sampling.
Axis letters: V vocabulary, n distinct tokens of a history.

Order: logit_bias, repetition_penalty, frequency_penalty, presence_penalty, banned tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pilotfish.config import SamplingParams
from pilotfish.errors import RequestError

_HISTORY = "the prompt or the answer"


class TokenHistory:
    """The tokens of one request, counted as they are committed.

    Appending a token is O(1); a verify row adds its draft prefix without changing the history.
    """

    def __init__(self, prompt_ids: Iterable[int], output_ids: Iterable[int] = ()) -> None:
        prompt = list(prompt_ids)
        self.num_prompt_tokens = len(prompt)
        self.num_output_tokens = 0
        self._slot_of = {token: slot for slot, token in enumerate(dict.fromkeys(prompt))}
        self._ids: NDArray[np.int64] = np.fromiter(self._slot_of, dtype=np.int64)
        self._counts: NDArray[np.int64] = np.zeros(len(self._ids), dtype=np.int64)
        self.extend(output_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together: the absolute position of the next token."""
        return self.num_prompt_tokens + self.num_output_tokens

    def append(self, token: int) -> None:
        """Counts one committed token of the answer."""
        slot = self._slot_of.setdefault(token, len(self._slot_of))
        if slot == len(self._ids):
            self._grow()
        self._ids[slot] = token
        self._counts[slot] += 1
        self.num_output_tokens += 1

    def extend(self, tokens: Iterable[int]) -> None:
        """Counts committed tokens of the answer, in order."""
        for token in tokens:
            self.append(token)

    def counts_with(self, draft_ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The distinct tokens of prompt, answer and draft, and how often each was generated.

        Returns ids [n] int64 and counts [n] int64 (0 for a token of the prompt only); draft tokens
        count as generated. The arrays are views when there is no draft: do not write to them.
        """
        used = len(self._slot_of)
        ids, counts = self._ids[:used], self._counts[:used]
        if not draft_ids:
            return ids, counts
        counts = counts.copy()
        new: dict[int, int] = {}
        for token in draft_ids:
            slot = self._slot_of.get(token)
            if slot is None:
                new[token] = new.get(token, 0) + 1
            else:
                counts[slot] += 1
        return (
            np.concatenate([ids, np.fromiter(new.keys(), dtype=np.int64)]),
            np.concatenate([counts, np.fromiter(new.values(), dtype=np.int64)]),
        )

    def _grow(self) -> None:
        room = max(16, len(self._ids))
        self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.int64)])


def penalize_(
    logits: Tensor, params: SamplingParams, history: TokenHistory, draft_ids: Sequence[int] = ()
) -> None:
    """Applies the three penalties for the tokens of the history and of the draft before this row.

    logits: [V] float32, changed in place.

    repetition (CTRL, Keskar et al. 2019, section 4.1, in the form of Hugging Face): the logit of
    every token of prompt and answer is divided by it if positive, else multiplied by it.
    frequency and presence (OpenAI): logit -= count * frequency + (count > 0) * presence, where
    count is how often the token was generated; the prompt does not count.
    """
    host_ids, host_counts = history.counts_with(draft_ids)
    if not len(host_ids):
        return
    _check_ids(int(host_ids.min()), int(host_ids.max()), logits.shape[0], _HISTORY)
    ids = torch.from_numpy(host_ids).to(logits.device)
    values = logits[ids]
    if params.repetition_penalty != 1.0:
        penalty = params.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        counts = torch.from_numpy(host_counts).to(logits.device, torch.float32)
        values = values - counts * params.frequency_penalty
        values = values - counts.clamp(max=1.0) * params.presence_penalty
    logits[ids] = values


def add_bias_(logits: Tensor, params: SamplingParams) -> None:
    """Adds `logit_bias`; logits: [V] float32, changed in place."""
    if params.logit_bias:
        bias = params.logit_bias
        _check_ids(min(bias), max(bias), logits.shape[0], "logit_bias")
        ids = torch.tensor(list(bias), dtype=torch.int64, device=logits.device)
        values = torch.tensor(list(bias.values()), dtype=torch.float32, device=logits.device)
        logits[ids] += values


def ban_(logits: Tensor, banned_ids: Sequence[int]) -> None:
    """Makes tokens impossible; logits: [V] float32, changed in place."""
    if banned_ids:
        _check_ids(min(banned_ids), max(banned_ids), logits.shape[0], "the banned tokens")
        ids = torch.tensor(list(banned_ids), dtype=torch.int64, device=logits.device)
        logits[ids] = -math.inf


def _check_ids(lowest: int, highest: int, vocab_size: int, where: str) -> None:
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(
            f"{where} has token id {wrong}; wanted ids from 0 to {vocab_size - 1}, the "
            "model's vocabulary: check the tokenizer or the request"
        )
