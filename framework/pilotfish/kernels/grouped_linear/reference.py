"""Grouped linear as the definition reads, in float32, row by row. The others are judged by it."""

from __future__ import annotations

import torch


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """x: [R, K]; weight: [E, O, K]; group: [R] int64; returns [R, O] of x.dtype, rounded once."""
    rows = [weight[g].float() @ row.float() for row, g in zip(x, group.tolist(), strict=True)]
    out = torch.stack(rows) if rows else x.new_empty((0, weight.shape[1]))
    return out.to(x.dtype)
