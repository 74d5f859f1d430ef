"""Rotary position embedding, applied in place.

Knows: half-split and interleaved pairs, partial rotation, angles. Does not know: where frequencies
come from. Letters: T packed tokens, N heads, H head width, R rotated width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.rope import eager, native

__all__ = ["apply_rope", "rope_angles"]


@on_native(native.apply_rope)
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
    Raises ValueError where R is 0. Source: Su et al. 2021, "RoFormer", eq. 34.
    """
    native.want_angles(cos.shape[1])
    if backend.name == "triton":
        from pilotfish.kernels.rope import triton

        return triton.apply_rope(x, cos, sin, interleaved)
    return eager.apply_rope(x, cos, sin, interleaved)


@on_native(native.rope_angles)
def rope_angles(
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    *,
    scale: float = 1.0,
    interleaved: bool = False,
    backend: KernelBackend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of `positions * frequencies`, as `apply_rope` takes them.

    positions: [T] int64. frequencies: [R/2] float32, radians a token, or [T, R/2] where rows
    differ. The angle is rounded to float32, as published models have it. scale: cos and sin are
    multiplied by it. Returns two new [T, R] float32, each pair's value at both of its places.
    A row's bits depend on that row only.
    """
    return eager.rope_angles(positions, frequencies, scale, interleaved)
