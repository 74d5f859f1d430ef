"""RMS norm, alone or fused with the residual add before it.

Knows: the two orders of rounding that families use. Does not know: which family uses which.
Letters: T packed tokens, N heads, D normalised width.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.rms_norm import eager

Cast: TypeAlias = Literal["before_weight", "after_weight"]

__all__ = ["Cast", "add_rms_norm", "rms_norm"]


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    cast: Cast,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `x / sqrt(mean(x^2) + eps) * weight`, normalised over the last axis.

    x: [T, D] or [T, N, D] float; the last axis is contiguous, the others may be strided.
    weight: [D] float, or None for one without a gain.
    cast: "before_weight" rounds the normed row to x.dtype, then multiplies and rounds again (the
    usual order in Hugging Face models); "after_weight" multiplies in float32 and rounds once.
    Returns a new contiguous tensor of x's shape and dtype. Statistics are float32 always.
    A row's bits depend on that row, weight and eps only (torch: given at least two rows).
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    if backend.name == "triton":
        from pilotfish.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps, cast)
    return eager.rms_norm(x, weight, eps, cast)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    multiplier: float = 1.0,
    cast: Cast,
    backend: KernelBackend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a sublayer's output to the residual stream and normalise the sum.

    x, residual: [T, D] of one dtype. Returns (normed, new residual), both [T, D] of that dtype;
    new residual = residual + multiplier * x, computed in float32 and rounded once to the
    stream's dtype; the norm reads the rounded sum, as if it were called on it.
    Mutates: `residual` is updated in place and is the second result. Bits: as for `rms_norm`.
    """
    if backend.name == "triton":
        from pilotfish.kernels.rms_norm import triton

        return triton.add_rms_norm(x, residual, weight, eps, multiplier=multiplier, cast=cast)
    return eager.add_rms_norm(x, residual, weight, eps, multiplier=multiplier, cast=cast)
