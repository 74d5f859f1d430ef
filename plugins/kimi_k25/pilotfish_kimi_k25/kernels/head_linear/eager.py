"""head_linear on the CPU: one batched product over the heads."""

from __future__ import annotations

import torch


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [T, N, K]; weight: [N, O, K]; returns [T, N, O], a view of [N, T, O]."""
    return torch.bmm(x.transpose(0, 1), weight.mT).transpose(0, 1)
