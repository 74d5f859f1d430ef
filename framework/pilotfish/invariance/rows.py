"""Rows: which rows of a ragged batch are wanted, and how many rows pad a pass.

Knows: plain ints. Does not know: tensors. Axis letters: B requests, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pilotfish.protocols import ReturnLogits


@attrs.frozen
class WantedRows:
    """indices: rows of the pass, in order. offsets: [B+1], request b's among them."""

    indices: list[int]
    offsets: list[int]


def wanted_rows(
    mode: ReturnLogits, row_counts: Sequence[int], return_n_logits: Sequence[int]
) -> WantedRows:
    """The rows whose logits a mode returns.

    row_counts: [B] rows of each request. return_n_logits: [1] or [B], read by VARIABLE only.
    Raises ValueError when more rows are wanted than a request has, or a negative number is.
    """
    counts = _counts(mode, row_counts, return_n_logits)
    indices: list[int] = []
    offsets = [0]
    end = 0
    for rows, wanted in zip(row_counts, counts, strict=True):
        end += rows
        if not 0 <= wanted <= rows:
            raise ValueError(
                f"return_n_logits asks for {wanted} rows of request {len(offsets) - 1}, which has "
                f"{rows} in this pass; wanted between 0 and {rows}"
            )
        indices.extend(range(end - wanted, end))
        offsets.append(len(indices))
    return WantedRows(indices, offsets)


def _counts(
    mode: ReturnLogits, row_counts: Sequence[int], return_n_logits: Sequence[int]
) -> Sequence[int]:
    if mode is ReturnLogits.ALL:
        return row_counts
    if mode is ReturnLogits.LAST_TOKEN:
        return [1] * len(row_counts)
    if len(return_n_logits) == 1:
        return list(return_n_logits) * len(row_counts)
    return return_n_logits


def padded(count: int, multiple: int) -> int:
    """The next multiple, at least one of it."""
    return max(1, -(-count // multiple)) * multiple
