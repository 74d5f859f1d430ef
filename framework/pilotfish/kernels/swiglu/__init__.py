"""SwiGLU: the gated activation of a packed gate and up projection.

Knows: silu(gate) * up. Does not know: the projections around it.
Letters: T packed tokens, I intermediate width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.swiglu import eager, native

__all__ = ["swiglu"]


@on_native(native.swiglu)
def swiglu(gate_up: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return `silu(gate) * up`; silu is rounded to the dtype, then the product is.

    gate_up: [T, 2I] float, gate in the first I columns, up in the last; rows may be strided.
    Returns a new contiguous [T, I] of the same dtype.
    A row's bits depend on that row only (torch: given at least two rows).
    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """
    if backend.name == "triton":
        from pilotfish.kernels.swiglu import triton

        return triton.swiglu(gate_up)
    return eager.swiglu(gate_up, invariant=backend.invariant)
