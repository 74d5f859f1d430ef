"""Log probabilities of tokens, as the model itself gave them.

Knows: log-softmax of the model's own float32 logits, before temperature, penalties, bias and
truncation. Does not know: how the token was chosen. Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_double, c_int64

import attrs
import torch
from torch import Tensor

from pilotfish.errors import PilotfishError
from pilotfish.kernels.sampling import native
from pilotfish.sampling.mass import log_normalizer


@attrs.frozen
class TokenLogprobs:
    """One token beside its likeliest rivals.

    token_id: the token sampled, or the prompt's. logprob: its natural log probability.
    rank: 1 for the likeliest token; the lower id first among equals.
    top: the likeliest tokens as (id, logprob), in the order of rank; may or may not hold token_id.
    text, top_texts: the token's text, and those of top; None without a tokenizer.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]
    text: str | None = attrs.field(default=None, eq=False)
    top_texts: tuple[str, ...] | None = attrs.field(default=None, eq=False)

    def with_texts(self, text_of: Callable[[int], str]) -> TokenLogprobs:
        """The same with every token's text."""
        return attrs.evolve(
            self,
            text=text_of(self.token_id),
            top_texts=tuple(text_of(token) for token, _ in self.top),
        )


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: int | Sequence[int]
) -> list[TokenLogprobs]:
    """Log probabilities of one token a row.

    logits: [R, V] float32, raw. token_ids: R ids. num_top: how many rivals, for all rows or one
    number a row. Raises PilotfishError when a row holds NaN or +inf, or nothing above -inf.
    A row's numbers depend on that row alone.
    """
    if not logits.shape[0]:
        return []
    tops = [num_top] * logits.shape[0] if isinstance(num_top, int) else num_top
    logits = logits.detach()
    if native.serves_logits(logits) and _are_tokens(token_ids, tops, logits):
        return _native_logprobs(logits, token_ids, tops)
    largest = logits.amax(-1, keepdim=True)
    for row, value in enumerate(largest[:, 0].tolist()):
        if not math.isfinite(value):
            raise _bad_row(row, value)
    normalizers = log_normalizer(logits, largest).tolist()
    return [
        _record(row, token, normalizer, count)
        for row, token, normalizer, count in zip(logits, token_ids, normalizers, tops, strict=True)
    ]


def prompt_logprobs(
    logits: Tensor, prompt_ids: Sequence[int], first_position: int, num_top: int
) -> list[TokenLogprobs]:
    """Log probabilities of the prompt's own tokens, for one chunk of a prefill.

    logits: [R, V] float32, raw, of the prompt's rows first_position .. first_position + R - 1. The
    row at position i tells of token i + 1, so the record of prompt token first_position + 1 comes
    first. The prompt's last row tells of the answer and is left out; token 0 has no record.
    Joined over the chunks of any chunking, the records are those of tokens 1 .. len(prompt) - 1.
    """
    follow = prompt_ids[first_position + 1 : first_position + 1 + logits.shape[0]]
    return token_logprobs(logits[: len(follow)], follow, num_top)


class AskedLogprobs:
    """What a native record is to say of its token; the memory lives here.

    num_top: likeliest tokens, at most the vocabulary.
    """

    def __init__(self, record: native.Row, num_top: int) -> None:
        self._record = record
        self._ids: Array[c_int64] = (c_int64 * num_top)()
        self._logprobs: Array[c_double] = (c_double * num_top)()
        record.wants_logprobs = 1
        record.num_top = num_top
        record.top_ids = addressof(self._ids)
        record.top_logprobs = addressof(self._logprobs)

    def read(self, token: int) -> TokenLogprobs:
        """What was found of the token that was given or drawn."""
        top = tuple(zip(self._ids, self._logprobs, strict=True))
        return TokenLogprobs(token, self._record.logprob, self._record.rank, top)


def _are_tokens(token_ids: Sequence[int], tops: Sequence[int], logits: Tensor) -> bool:
    rows, vocab = logits.shape
    return len(token_ids) == len(tops) == rows and all(0 <= token < vocab for token in token_ids)


def _native_logprobs(
    logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprobs]:
    """As `token_logprobs`, by the native library."""
    records, vocab = native.new_rows(len(tops)), logits.shape[1]
    asked = [AskedLogprobs(r, min(n, vocab)) for r, n in zip(records, tops, strict=True)]
    tokens = torch.tensor(token_ids, dtype=torch.int64)
    if not native.sample_rows(logits, records, tokens=tokens, looks=native.LOGPROBS * len(tops)):
        bad = next(row for row, record in enumerate(records) if record.status)
        raise _bad_row(bad, records[bad].largest)
    return [one.read(token) for one, token in zip(asked, token_ids, strict=True)]


def _bad_row(row: int, largest: float) -> PilotfishError:
    return PilotfishError(
        f"the logits of row {row} have the maximum {largest}, so they have no log "
        "probabilities; wanted finite numbers: check the weights and the dtype"
    )


def _record(row: Tensor, token: int, normalizer: float, num_top: int) -> TokenLogprobs:
    value = row[token]
    rank = int((row > value).sum()) + int((row[:token] == value).sum()) + 1
    top = tuple((i, v - normalizer) for i, v in _top_tokens(row, num_top))
    return TokenLogprobs(token, float(value) - normalizer, rank, top)


def _top_tokens(row: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` highest logits as (id, logit), lower ids first among equals; row: [V]."""
    count = min(count, row.shape[0])
    if count == 0:
        return []
    # topk may return any of the tokens that tie for the last place, so only its value is used.
    last = row.topk(count).values[-1]
    ids = (row >= last).nonzero()[:, 0]
    order = torch.sort(row[ids], descending=True, stable=True).indices[:count]
    ids = ids[order]
    return list(zip(ids.tolist(), row[ids].tolist(), strict=True))
