"""Layer norm as the definition reads. Slow: the others are judged by it."""

from __future__ import annotations

import torch


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """x: [T, D]; weight, bias: [D] float32 or None; returns a new [T, D] of x's dtype."""
    left = x.float() - x.float().mean(-1, keepdim=True)
    normed = left / torch.sqrt(left.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    if bias is not None:
        normed = normed + bias
    return normed.to(x.dtype)
