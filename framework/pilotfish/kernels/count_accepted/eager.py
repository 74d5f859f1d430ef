"""How many drafts agree, in a few torch operations over all rows."""

from __future__ import annotations

import torch


def count_accepted(
    tokens: torch.Tensor, drafts: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """As the public function: the first row that disagrees, or the bonus row, ends a run."""
    starts, ends = offsets[:-1].long(), offsets[1:].long()
    num_rows = tokens.shape[0]
    rows = torch.arange(num_rows, device=tokens.device)
    differs = tokens != drafts
    differs[ends - 1] = True  # the row after the last draft judges none
    # Row -> the first row from there on that differs: a running minimum from the end.
    first = torch.where(differs, rows, num_rows).flip(0).cummin(0).values.flip(0)
    return first[starts] - starts
