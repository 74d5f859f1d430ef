"""SwiGLU as the definition reads. Slow: the others are judged by it."""

from __future__ import annotations

import torch


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2I]; returns [T, I] of its dtype; silu is rounded, then the product."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    silu = (gate / (1 + torch.exp(-gate))).to(gate_up.dtype)
    return (silu.float() * up).to(gate_up.dtype)
