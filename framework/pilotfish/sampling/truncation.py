"""Truncation of a row to its likeliest tokens: top_k, top_p, min_p.

Knows: which tokens stay. Does not know: temperature, noise, requests.
Axis letters: R rows of logits, V vocabulary, C likeliest tokens looked at.

Tokens are ordered by logit, highest first, and by id among equals. Each option keeps a prefix of
that order, and the shortest wins:

- top_k keeps the first k: exactly k, with the lowest ids where logits tie.
- top_p keeps a token while the tokens before it hold less than top_p of the mass, the mass being
  that of the tokens top_k left, renormalised. The token that crosses top_p stays.
- min_p keeps a token whose probability is at least min_p times the likeliest token's.

The first token always stays. Temperature has been applied before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from pilotfish.kernels.sampling import native
from pilotfish.sampling.mass import token_mass

_FIRST_WIDTH = 128
_WIDTH_GROWTH = 16
_SORT_FROM = 1 << 10  # wider than this, numpy's sort of the row beats torch's topk on a CPU


@attrs.frozen(kw_only=True)
class Truncation:
    """One row's options. top_k: -1 keeps all. top_p: 1.0 keeps all. min_p: 0.0 keeps all."""

    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it keeps every token."""
        return self.top_k < 0 and self.top_p >= 1.0 and self.min_p <= 0.0


@attrs.frozen(kw_only=True)
class Cut:
    """The prefix of one row's order that stays.

    num_tokens: its length. last_value: its lowest logit; of the tokens that have just this logit
    only those with the lowest ids stay, as many as the length leaves room for.
    """

    num_tokens: int
    last_value: float

    def kept_ids(self, row: Tensor) -> Tensor:
        """row: [V] float32, the row that was cut. Returns [num_tokens] int64, ascending."""
        ids = _at_least(row, self.last_value)
        surplus = ids.numel() - self.num_tokens
        if surplus <= 0:
            return ids
        stays = torch.ones_like(ids, dtype=torch.bool)
        ties = (row[ids] == self.last_value).nonzero()[:, 0]
        stays[ties[-surplus:]] = False
        return ids[stays]


def truncate_(logits: Tensor, options: Sequence[Truncation]) -> None:
    """Sets the logits of the tokens that do not stay to -inf.

    logits: [R, V] float32, changed in place; as for `find_cuts`.
    """
    if native.serves_logits(logits):
        work = logits.detach().contiguous()
        _native_cuts(work, options, processed=work)
        if work.data_ptr() != logits.data_ptr():
            logits.copy_(work)
        return
    for row, cut in zip(logits, find_cuts(logits, options), strict=True):
        if cut is not None:
            ids = cut.kept_ids(row)
            values = row[ids]
            row.fill_(-math.inf)
            row[ids] = values


def find_cuts(logits: Tensor, options: Sequence[Truncation]) -> list[Cut | None]:
    """Where each row's order is cut; None for a row whose options keep all.

    logits: [R, V] float32 after temperature; each row has a finite maximum and no NaN.
    options: one for each row.

    A row's cut depends on that row alone: values are compared, and masses are whole numbers.
    Looks at the few likeliest tokens first, and at more only for the rows that need them.
    """
    if native.serves_logits(logits):
        return _native_cuts(logits, options)
    cuts: list[Cut | None] = [None] * len(options)
    todo = [row for row, option in enumerate(options) if not option.is_open]
    width = _first_width([options[row] for row in todo], logits.shape[1]) if todo else 0
    while todo:
        found = _cuts_within(_rows(logits, todo), [options[row] for row in todo], width)
        for row, cut in zip(todo, found, strict=True):
            cuts[row] = cut
        todo = [row for row in todo if cuts[row] is None]
        width = min(width * _WIDTH_GROWTH, logits.shape[1])
    return cuts


def _native_cuts(
    logits: Tensor, options: Sequence[Truncation], processed: Tensor | None = None
) -> list[Cut | None]:
    """As `find_cuts`, by the native library; processed: [R, V], receives what stays."""
    if len(options) != logits.shape[0]:
        raise ValueError(f"{len(options)} options for {logits.shape[0]} rows; wanted one a row")
    records = native.new_rows(len(options))
    for record, option in zip(records, options, strict=True):
        record.temperature = 1.0
        write_truncation(record, option.top_k, option.top_p, option.min_p)
    looks = native.WHOLE_ROW * len(options)
    if not native.sample_rows(logits, records, processed=processed, looks=looks):
        raise ValueError(
            "a row to be cut holds NaN or +inf, or nothing above -inf; wanted a finite maximum: "
            "check the logits before"
        )
    return [
        None if option.is_open else Cut(num_tokens=record.num_kept, last_value=record.last_value)
        for record, option in zip(records, options, strict=True)
    ]


def write_truncation(record: native.Row, top_k: int, top_p: float, min_p: float) -> None:
    """Asks a native record for these options; those that keep all are off there."""
    if top_k > 0:
        record.top_k = top_k
    if top_p < 1.0:
        record.top_p = top_p
    if min_p > 0.0:
        record.min_p = min_p


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    if len(rows) == logits.shape[0]:
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _first_width(options: Sequence[Truncation], vocab_size: int) -> int:
    """Wide enough for every top_k, since top_p needs the mass of the k tokens."""
    largest_k = max(option.top_k for option in options)
    length_unknown = any(option.top_k < 0 for option in options)
    return min(vocab_size, max(largest_k, _FIRST_WIDTH if length_unknown else 1))


def _cuts_within(logits: Tensor, options: list[Truncation], width: int) -> list[Cut | None]:
    """The cuts that the `width` likeliest tokens tell; None for a row that needs more."""
    values = _largest_values(logits, width)
    lengths = torch.tensor(
        [option.top_k if 0 <= option.top_k <= width else width + 1 for option in options],
        device=logits.device,
    )
    if any(option.min_p > 0.0 for option in options):
        lengths = torch.minimum(lengths, _min_p_lengths(values, options))
    if any(option.top_p < 1.0 for option in options):
        lengths = torch.minimum(lengths, _top_p_lengths(logits, values, options))
    if width == logits.shape[1]:
        lengths.clamp_(max=width)
    last = values.gather(1, lengths.clamp(max=width)[:, None] - 1)[:, 0]
    return [
        Cut(num_tokens=length, last_value=value) if length <= width else None
        for length, value in zip(lengths.tolist(), last.tolist(), strict=True)
    ]


def _largest_values(logits: Tensor, width: int) -> Tensor:
    """[R, C] float32, descending. Values only: which of equal tokens topk names is its own choice.

    logits: [R, V] float32.
    """
    if logits.device.type == "cpu" and width > _SORT_FROM:
        ascending = np.sort(logits.numpy(), axis=1)[:, -width:]
        return torch.from_numpy(np.ascontiguousarray(ascending[:, ::-1]))
    return logits.topk(width).values


def _min_p_lengths(values: Tensor, options: list[Truncation]) -> Tensor:
    """[R] int64: how many of the C likeliest pass min_p; C + 1 when all do, or when it is off."""
    logs = [math.log(option.min_p) if option.min_p > 0.0 else -math.inf for option in options]
    floor = torch.tensor(logs, dtype=torch.float64, device=values.device)
    return _prefix_lengths(values.double() - values[:, :1].double() >= floor[:, None])


def _top_p_lengths(logits: Tensor, values: Tensor, options: list[Truncation]) -> Tensor:
    """[R] int64: how many of the C likeliest top_p keeps; C + 1 when it may keep more."""
    device, largest = values.device, values[:, :1]
    mass = token_mass(values, largest)
    through = mass.cumsum(-1)
    ks = torch.tensor([min(max(o.top_k, 1), values.shape[1]) for o in options], device=device)
    total = through.gather(1, ks[:, None] - 1)[:, 0]
    whole = [i for i, o in enumerate(options) if o.top_k < 0 and o.top_p < 1.0]
    if whole:
        index = torch.tensor(whole, device=device)
        total[index] = token_mass(_rows(logits, whole), largest[index]).sum(-1)
    ps = torch.tensor([o.top_p for o in options], dtype=torch.float64, device=device)
    wanted = torch.where(ps < 1.0, total.double() * ps, math.inf)
    return _prefix_lengths((through - mass).double() < wanted[:, None])


def _prefix_lengths(passed: Tensor) -> Tensor:
    """passed: [R, C] bool, true then false. Returns [R] int64, the trues; C + 1 if all are true."""
    count = passed.sum(-1)
    return torch.where(count == passed.shape[1], count + 1, count)


def _at_least(row: Tensor, value: float) -> Tensor:
    """The ids whose logit is `value` or more, ascending; row: [V] float32."""
    if row.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(row.numpy() >= np.float32(value)))
    return (row >= value).nonzero()[:, 0]
