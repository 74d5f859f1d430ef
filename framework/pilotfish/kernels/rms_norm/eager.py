"""RMS norm on a CPU: few torch calls, each of which treats every element alike.

Knows: which calls give one row the same bits wherever it lies. Does not know: Triton.
A call costs about 1 us before it computes anything, so at decode their number is the time.
"""

from __future__ import annotations

import torch

from pilotfish.platform.constants import constant


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, cast: str) -> torch.Tensor:
    """x: [..., D]; weight: [D] or None; returns a new tensor, as the public function."""
    x_f32 = x.float()
    # A sum in cascade errs less than vector_norm does (1.5 against 5 roundings at D = 8192).
    total = (x_f32 * x_f32).sum(-1, True)
    mean = torch.add(constant(eps, device=x.device), total, alpha=1 / x.shape[-1])
    scale = mean.rsqrt_()
    # float() does not copy a float32 x, so it may not be written.
    normed = x_f32 * scale if x_f32 is x else x_f32.mul_(scale)
    if weight is not None and cast == "after_weight":
        normed.mul_(weight)
    normed = normed.type_as(x)  # a third faster to call than to(x.dtype)
    if weight is not None and cast == "before_weight":
        normed.mul_(weight)
    return normed


def add_scaled(
    residual: torch.Tensor, x: torch.Tensor, multiplier: float, out: torch.Tensor | None
) -> torch.Tensor:
    """residual, x: [T, D]; returns residual + multiplier * x in `out`, or anew."""
    if multiplier == 1.0:
        return torch.add(residual, x, out=out)
    # torch.add(alpha=...) rounds alpha * x in bfloat16, and not so for the last elements.
    one = constant(1.0, dtype=x.dtype, device=x.device)
    return torch.addcmul(residual, x, one, value=multiplier, out=out)
