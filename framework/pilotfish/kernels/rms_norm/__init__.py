"""RMS norm, alone or fused with the residual add before it.

Knows: the two orders of rounding that families use. Does not know: which family uses which.
Letters: T packed tokens, N heads, D normalised width.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.rms_norm import eager, native

Cast: TypeAlias = Literal["before_weight", "after_weight"]

__all__ = ["Cast", "add_rms_norm", "add_scaled", "norm_heads", "rms_norm"]


@on_native(native.rms_norm)
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


@on_native(native.add_rms_norm)
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

        normed = triton.rms_norm(x, weight, eps, cast, residual=residual, multiplier=multiplier)
        return normed, residual
    eager.add_scaled(residual, x, multiplier, residual)
    return eager.rms_norm(residual, weight, eps, cast), residual


@on_native(native.norm_heads)
def norm_heads(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, backend: KernelBackend
) -> torch.Tensor:
    """Normalise every head in place, each with a weight row of its own; "before_weight".

    x: [T, N, H] float, heads contiguous inside, the rest may be strided. Mutated; returned for
    convenience. weight: [N, H] float, rows contiguous. Bits: as for `rms_norm`.
    """
    normed = rms_norm(x, None, eps, cast="before_weight", backend=backend)
    return x.copy_(normed.mul_(weight))


@on_native(native.add_scaled)
def add_scaled(
    residual: torch.Tensor,
    x: torch.Tensor,
    multiplier: float,
    *,
    out: torch.Tensor | None = None,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `residual + multiplier * x`, as `add_rms_norm` adds: float32, rounded once.

    residual, x: [T, D] of one dtype, rows contiguous. Returns a new [T, D], or `out`, which may be
    either of them.
    """
    return eager.add_scaled(residual, x, multiplier, out)
