"""SamplingRows as records of the native library, and its answers as ours.

Knows: both records. Does not know: what is done with a row; that is kernels/sampling/native.h.
Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import Array
from typing import Any

import torch
from torch import Tensor

from pilotfish.kernels.sampling import native
from pilotfish.sampling.edits import edit_, history_of, unusable
from pilotfish.sampling.logprobs import AskedLogprobs, TokenLogprobs
from pilotfish.sampling.row import SamplingRow
from pilotfish.sampling.truncation import write_truncation


def sample(
    logits: Tensor, rows: Sequence[SamplingRow]
) -> tuple[Tensor, tuple[TokenLogprobs | None, ...]]:
    """One token a row, [R] int64, and the log probabilities of the rows that ask.

    logits: [R, V] float32 on the CPU, V above 0. Raises as Sampler.sample.
    """
    tokens = torch.empty(len(rows), dtype=torch.int64)
    call = _Call(rows, logits.shape[1], with_logprobs=True)
    call.run(logits, tokens=tokens, draws=True)
    if not call.asked:
        return tokens, (None,) * len(rows)
    found = tokens.tolist()
    return tokens, tuple(
        call.asked[i].read(found[i]) if i in call.asked else None for i in range(len(rows))
    )


def process(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """[R, V] float32: what Sampler.process_logits returns; raises as `sample`."""
    processed = torch.empty(logits.shape, dtype=torch.float32)
    _Call(rows, logits.shape[1]).run(logits, processed=processed)
    return processed


class _Call:
    """The records of some rows, and the memory that they point into."""

    def __init__(
        self, rows: Sequence[SamplingRow], vocab_size: int, *, with_logprobs: bool = False
    ) -> None:
        self.asked: dict[int, AskedLogprobs] = {}
        self._rows = rows
        self._vocab_size = vocab_size
        self._records: Array[native.Row] = (native.Row * len(rows))()
        self._memory: list[Any] = []
        self._looks = native.ONE_LOOK * len(rows)
        for i, (record, row) in enumerate(zip(self._records, rows, strict=True)):
            if not row.params.is_greedy:
                self._write_draw(record, row)
            if row.banned_ids or row.params.logit_bias or row.params.has_penalties:
                self._write_edits(record, row)
            if with_logprobs and row.params.logprobs is not None:
                self._looks += native.LOGPROBS
                self.asked[i] = AskedLogprobs(record, min(row.params.logprobs, vocab_size))

    def run(
        self,
        logits: Tensor,
        *,
        tokens: Tensor | None = None,
        draws: bool = False,
        processed: Tensor | None = None,
    ) -> None:
        """Arguments as for the native function. Raises as `sample`."""
        done = native.sample_rows(
            logits,
            self._records,
            tokens=tokens,
            draws=draws,
            processed=processed,
            looks=self._looks,
        )
        if not done:
            self._refuse()

    def _write_draw(self, record: native.Row, row: SamplingRow) -> None:
        params = row.params
        record.temperature = params.temperature
        record.seed = row.seed
        record.position = row.position
        write_truncation(record, params.top_k, params.top_p, params.min_p)
        self._looks += native.SHORT_LIST if params.top_k > 0 else native.WHOLE_ROW

    def _write_edits(self, record: native.Row, row: SamplingRow) -> None:
        params = row.params
        if params.logit_bias:
            record.bias_ids, record.num_bias = self._ids(params.logit_bias, row)
            record.bias, _ = self._keep(array("f", params.logit_bias.values()))
        if row.banned_ids:
            record.banned_ids, record.num_banned = self._ids(row.banned_ids, row)
        if params.has_penalties:
            ids, counts = history_of(row).counts_with(row.draft_ids)
            self._memory += [ids, counts]
            record.seen_ids, record.seen_counts = ids.ctypes.data, counts.ctypes.data
            record.num_seen = len(ids)
            record.repetition_penalty = params.repetition_penalty
            record.frequency_penalty = params.frequency_penalty
            record.presence_penalty = params.presence_penalty

    def _ids(self, ids: Any, row: SamplingRow) -> tuple[int, int]:
        try:
            return self._keep(array("q", ids))
        except OverflowError:  # such a number is no token's
            self._refuse_ids(row)
            raise

    def _keep(self, values: array[Any]) -> tuple[int, int]:
        self._memory.append(values)
        return values.buffer_info()

    def _refuse(self) -> None:
        """Raises for the first row whose own logits are bad, else for the first that is."""
        pairs = [(r, row) for r, row in zip(self._records, self._rows, strict=True) if r.status]
        pairs.sort(key=lambda pair: pair[0].status != native.BAD_LOGITS)
        record, row = pairs[0]
        if record.status == native.BAD_ID:
            self._refuse_ids(row)
        raise unusable(row, record.largest)

    def _refuse_ids(self, row: SamplingRow) -> None:
        edit_(torch.zeros(self._vocab_size), row)
