"""head_linear as the definition reads, in float32. Slow: the others are judged by it."""

from __future__ import annotations

import torch


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [T, N, K]; weight: [N, O, K]; returns [T, N, O] of x's dtype."""
    return torch.einsum("tnk,nok->tno", x.float(), weight.float()).to(x.dtype)
