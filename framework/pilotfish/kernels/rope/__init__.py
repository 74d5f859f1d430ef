"""Rotary position embedding, applied in place.

Knows: half-split and interleaved pairs, partial rotation. Does not know: how angles are made.
Letters: T packed tokens, N heads, H head width, R rotated width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.rope import eager

__all__ = ["apply_rope"]


def apply_rope(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    backend: KernelBackend,
) -> torch.Tensor:
    """Rotate the first R dimensions of every head by its row's angles; in place.

    x: [T, N, H] float; a strided view is fine (q and k heads side by side in a packed qkv),
    heads contiguous inside. Mutated; returned for convenience. Dimensions R and up are kept.
    cos, sin: [T, R] float32, R even and at most H. Half-split (`interleaved=False`): dimension i
    pairs with i + R/2, both halves of cos and sin hold the pair's value (`cat[a, a]`).
    Interleaved: 2i pairs with 2i + 1, and so do their entries (`repeat_interleave(a, 2)`).
    Computed in float32 and rounded once to x.dtype.
    A row's bits depend on that row and its angles only (torch: given at least two rows).
    Source: Su et al. 2021, "RoFormer", eq. 34.
    """
    if backend.name == "triton":
        from pilotfish.kernels.rope import triton

        return triton.apply_rope(x, cos, sin, interleaved)
    return eager.apply_rope(x, cos, sin, interleaved)
