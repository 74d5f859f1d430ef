"""The weighted sum of rows as the definition reads. Slow: the others are judged by it."""

from __future__ import annotations

import torch


def combine_rows(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None,
    num_rows: int,
) -> torch.Tensor:
    """As the public function: one row, one term at a time, in float32."""
    out = torch.empty((num_rows, x.shape[1]), dtype=x.dtype, device=x.device)
    for t in range(num_rows):
        total = torch.zeros(x.shape[1], device=x.device)
        for s in range(places.shape[1] if t < places.shape[0] else 0):
            total = total + weights[t, s] * x[places[t, s]].float()
        out[t] = total if last is None else total + last[t].float()
    return out
