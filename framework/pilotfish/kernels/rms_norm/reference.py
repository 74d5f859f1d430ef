"""RMS norm as the definition reads. Slow: the other implementations are judged by it."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, cast: str) -> torch.Tensor:
    """x: [..., D]; weight: [D] or None; returns x's shape and dtype (see the public function)."""
    x_f32 = x.float()
    normed = x_f32 / torch.sqrt(x_f32.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(x.dtype)
    if cast == "before_weight":
        normed = normed.to(x.dtype).float()
    return (normed * weight.float()).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    multiplier: float,
    cast: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual: [T, D]; returns (normed, new residual) and leaves `residual` as it was."""
    stream = (residual.float() + multiplier * x.float()).to(residual.dtype)
    return rms_norm(stream, weight, eps, cast), stream
