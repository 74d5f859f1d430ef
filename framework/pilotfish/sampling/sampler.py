"""Sampler: one token for each row of logits.

Knows: the order of the steps, and which rows need which. Does not know: requests' lifecycles,
caches, drafts. Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.elementwise import softmax
from pilotfish.kernels.sampling.native import serves_logits
from pilotfish.sampling import native
from pilotfish.sampling.argmax import lowest_argmax
from pilotfish.sampling.edits import edit_, unusable
from pilotfish.sampling.logprobs import TokenLogprobs, token_logprobs
from pilotfish.sampling.noise import gumbel, gumbel_at
from pilotfish.sampling.row import SamplingRow
from pilotfish.sampling.truncation import find_cuts, truncate_


@attrs.frozen(kw_only=True)
class SampledRows:
    """What was sampled.

    token_ids: [R] int64, on the device of the logits.
    logprobs: one record a row; None for a row that did not ask.
    """

    token_ids: Tensor
    logprobs: tuple[TokenLogprobs | None, ...]


class Sampler:
    """Samples the token of each row as argmax(processed logits / T + noise), lowest id on ties.

    The noise is Gumbel noise of (seed, position, id), so nothing else is random and a row's token
    depends on its logits, its SamplingRow and nothing beside it. Keeps no state.
    """

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SampledRows:
        """Samples one token a row.

        logits: [R, V] float32, the model's own, not changed. rows: R records.
        Raises PilotfishError naming the row and its request when logits hold NaN or +inf, or when
        every token is masked; RequestError for a token id outside the vocabulary.
        """
        if logits.ndim != 2 or logits.shape[0] != len(rows) or logits.dtype != torch.float32:
            raise _wrong_shape(logits, rows)
        logits = logits.detach()
        if serves_logits(logits):
            tokens, records = native.sample(logits, rows)
            return SampledRows(token_ids=tokens, logprobs=records)
        token_ids = self._sample(logits, rows)
        return SampledRows(token_ids=token_ids, logprobs=_logprobs(logits, rows, token_ids))

    def _sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        token_ids = _greedy(logits, rows)
        noisy = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        edited = [i for i, row in enumerate(rows) if row.params.is_greedy and row.has_edits]
        if edited:
            picked, chosen = _pick(logits, rows, edited)
            _edit_(picked, chosen)
            token_ids[edited] = _greedy(picked, chosen)
        if noisy:
            picked, chosen = _pick(logits, rows, noisy)
            _edit_(picked, chosen)
            _temper_(picked, chosen)
            token_ids[noisy] = _draw(picked, chosen)
        return token_ids

    def process_logits(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """The logits whose softmax is the distribution of each row's token.

        logits: [R, V] float32, the model's own, not changed. Returns [R, V] float32, a new tensor:
        edited, divided by the temperature, truncated with -inf. A greedy row is edited only: its
        probability is all on the argmax. Raises as `sample`.
        """
        if logits.ndim != 2 or logits.shape[0] != len(rows) or logits.dtype != torch.float32:
            raise _wrong_shape(logits, rows)
        logits = logits.detach()
        if serves_logits(logits):
            return native.process(logits, rows)
        _greedy(logits, rows)
        processed = logits.clone()
        _edit_(processed, rows)
        _check_largest(processed.amax(-1), rows)
        noisy = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if noisy:
            picked, chosen = _pick(processed, rows, noisy)
            _temper_(picked, chosen)
            truncate_(picked, [row.truncation for row in chosen])
            processed[noisy] = picked
        return processed

    def probs(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """[R, V] float32, the probabilities of each row's token; arguments as `process_logits`."""
        processed = self.process_logits(logits, rows)
        backend = KernelBackend("native" if serves_logits(processed) else "torch")
        return softmax(processed, backend=backend)


def _pick(
    logits: Tensor, rows: Sequence[SamplingRow], places: list[int]
) -> tuple[Tensor, list[SamplingRow]]:
    """A copy of some rows and their records."""
    index = torch.tensor(places, device=logits.device)
    return logits.index_select(0, index), [rows[i] for i in places]


def _wrong_shape(logits: Tensor, rows: Sequence[SamplingRow]) -> ValueError:
    return ValueError(
        f"logits are {list(logits.shape)} {logits.dtype}; wanted [{len(rows)}, V] float32, one row "
        "for each SamplingRow"
    )


def _check_largest(largest: Tensor, rows: Sequence[SamplingRow]) -> None:
    """largest: [R] float32, each row's maximum, NaN if the row holds one."""
    for row, value in zip(rows, largest.tolist(), strict=True):
        if not math.isfinite(value):
            raise unusable(row, value)


def _greedy(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """[R] int64, the likeliest token of each row; checks every row on the way."""
    token_ids, largest = lowest_argmax(logits)
    _check_largest(largest, rows)
    return token_ids


def _edit_(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Applies each row's edits; logits: [R, V] float32, changed in place."""
    for row_logits, row in zip(logits, rows, strict=True):
        if row.has_edits:
            edit_(row_logits, row)


def _temper_(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Divides by the temperatures; logits: [R, V] float32, edited, changed in place."""
    temperatures = [[row.params.temperature] for row in rows]
    logits /= torch.tensor(temperatures, dtype=torch.float32, device=logits.device)
    _check_largest(logits.amax(-1), rows)


def _draw(tempered: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """tempered: [R, V] float32, not yet truncated. Returns [R] int64.

    A row that is cut gets noise for the tokens that stay only: the same bits, for less work.
    """
    seeds = torch.tensor([row.seed for row in rows])
    positions = torch.tensor([row.position for row in rows])
    cuts = find_cuts(tempered, [row.truncation for row in rows])
    whole = [i for i, cut in enumerate(cuts) if cut is None]
    drawn = torch.empty(len(rows), dtype=torch.int64, device=tempered.device)
    if whole:
        noise = gumbel(seeds[whole], positions[whole], tempered.shape[1], tempered.device)
        noise += tempered if len(whole) == len(rows) else tempered[whole]
        drawn[whole] = lowest_argmax(noise)[0]
    kept = {i: cut.kept_ids(tempered[i]) for i, cut in enumerate(cuts) if cut is not None}
    if kept:
        lengths = torch.tensor([ids.numel() for ids in kept.values()])
        places = torch.tensor(list(kept)).repeat_interleave(lengths)
        noise = gumbel_at(seeds[places], positions[places], torch.cat(list(kept.values())))
        pieces = torch.split(noise, lengths.tolist())
        for (i, ids), row_noise in zip(kept.items(), pieces, strict=True):
            scores = row_noise + tempered[i, ids]
            drawn[i : i + 1] = ids[lowest_argmax(scores[None, :])[0]]
    return drawn


def _logprobs(
    logits: Tensor, rows: Sequence[SamplingRow], token_ids: Tensor
) -> tuple[TokenLogprobs | None, ...]:
    tops = {i: row.params.logprobs for i, row in enumerate(rows) if row.params.logprobs is not None}
    if not tops:
        return (None,) * len(rows)
    index = torch.tensor(list(tops), device=logits.device)
    picked = logits if len(tops) == len(rows) else logits[index]
    records = token_logprobs(picked, token_ids[index].tolist(), list(tops.values()))
    found = dict(zip(tops, records, strict=True))
    return tuple(found.get(i) for i in range(len(rows)))
