"""A linear layer as the definition reads, in float32. Knows no packing."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x: [T, K]; weight: [O, K]; bias: [O] or None; returns [T, O] of x.dtype, rounded once."""
    out = x.float() @ weight.float().T
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)
