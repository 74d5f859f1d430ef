"""Rotary embedding on a CPU, in few torch calls.

Knows: multiply, add and subtract only, so an element's bits cannot depend on where it lies.
"""

from __future__ import annotations

import torch


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """x: [T, N, H], mutated; cos, sin: [T, R]; returns x, as the public function."""
    width = cos.shape[-1]
    target = x if width == x.shape[-1] else x[..., :width]
    head = target.float()
    out = head * cos.unsqueeze(1)
    crossed = head * sin.unsqueeze(1)
    if interleaved:
        out[..., 0::2].sub_(crossed[..., 1::2])
        out[..., 1::2].add_(crossed[..., 0::2])
    else:
        first, second = out.chunk(2, -1)
        crossed_first, crossed_second = crossed.chunk(2, -1)
        first.sub_(crossed_second)
        second.add_(crossed_first)
    target.copy_(out)
    return x


def rope_angles(
    positions: torch.Tensor, frequencies: torch.Tensor, scale: float, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions: [T]; frequencies: [R/2] or [T, R/2]; as the public function."""
    if interleaved:
        frequencies = frequencies.repeat_interleave(2, -1)
    else:
        frequencies = torch.cat((frequencies, frequencies), -1)
    angles = positions.unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin_()
    if scale != 1.0:
        cos.mul_(scale)
        sin.mul_(scale)
    return cos, sin
