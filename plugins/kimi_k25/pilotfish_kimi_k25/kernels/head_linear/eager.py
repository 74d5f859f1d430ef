"""head_linear on the CPU: one batched product over the heads, of a fixed number of rows."""

from __future__ import annotations

import torch

from pilotfish.kernels.linear.eager import blocks_of


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [T, N, K]; weight: [N, O, K]; returns [T, N, O], a view of [N, T, O]."""
    return torch.bmm(x.transpose(0, 1), weight.mT).transpose(0, 1)


def head_linear_in_blocks(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As `head_linear`, in products of as many rows as those of `kernels.linear`: no row's bits
    depend on T, where `head_row_multiple` found so. Returns a new [T, N, O].
    """
    if not x.shape[0]:
        return head_linear(x, weight)
    return torch.cat([head_linear(block, weight) for block in blocks_of(x)])[: x.shape[0]]
