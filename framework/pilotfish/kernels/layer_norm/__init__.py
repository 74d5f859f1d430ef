"""Layer norm, alone or fused with the residual add before it.

Knows: weight and bias in float32, or none. Does not know: which family uses it.
Letters: T packed tokens, D normalised width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.layer_norm import eager, native
from pilotfish.kernels.rms_norm import add_scaled

__all__ = ["add_layer_norm", "layer_norm"]


@on_native(native.layer_norm)
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, over the last axis.

    x: [T, D] float, rows contiguous (else they are copied), the rows themselves may be strided.
    weight, bias: [D] float32, or None. Computed in float32, rounded once. Returns a new [T, D] of
    x's dtype. A row's bits depend on that row, weight, bias and eps only.
    Source: Ba et al. 2016, "Layer Normalization", eq. 3 and 4.
    """
    return eager.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    multiplier: float = 1.0,
    backend: KernelBackend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a sublayer's output to the residual stream and normalise the sum.

    As `add_rms_norm`: returns (normed, new residual), `residual` updated in place to
    residual + multiplier * x, computed in float32 and rounded once; the norm reads that.
    """
    if backend.name == "native":
        normed = native.layer_norm(x, weight, bias, eps, residual=residual, multiplier=multiplier)
        return normed, residual
    add_scaled(residual, x, multiplier, out=residual, backend=backend)
    return eager.layer_norm(residual, weight, bias, eps), residual
