"""The functions as their definitions read. Slow; rounds nothing.

x: float32 or float64, any shape; returns a new tensor of x's dtype.
"""

from __future__ import annotations

import math

import torch

# torch's own are their definitions.
exp, log, tanh, erf = torch.exp, torch.log, torch.tanh, torch.erf


def silu(x: torch.Tensor) -> torch.Tensor:
    """`x / (1 + exp(-x))`."""
    return x * sigmoid(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's share below x."""
    share: torch.Tensor = torch.special.erfc(-x / math.sqrt(2)) / 2
    return x * share


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """`x / 2 * (1 + tanh(u))`, which is `x / (1 + exp(-2u))`."""
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """`1 / (1 + exp(-x))`."""
    return 1 / (1 + torch.exp(-x))


def softplus(x: torch.Tensor) -> torch.Tensor:
    """`log(1 + exp(x))`, so that large x does not overflow."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """`max(x, 0)^2`."""
    return x.clamp(min=0).square()


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Over the last axis."""
    grown = torch.exp(x - x.amax(-1, keepdim=True))
    return grown / grown.sum(-1, keepdim=True)
