"""Rotary embedding as the definition reads. Slow; mutates nothing."""

from __future__ import annotations

import torch


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """x: [T, N, H]; cos, sin: [T, R]; returns a new [T, N, H] (see the public function)."""
    width = cos.shape[-1]
    head = x[..., :width].float()
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
        rotated = torch.stack((-second, first), dim=-1).flatten(-2)
    else:
        first, second = head.chunk(2, dim=-1)
        rotated = torch.cat((-second, first), dim=-1)
    out = head * cos.unsqueeze(1) + rotated * sin.unsqueeze(1)
    return torch.cat((out.to(x.dtype), x[..., width:]), dim=-1)
