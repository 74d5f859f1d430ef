"""One small linear layer for every head: `out[t, n] = weight[n] @ x[t, n]`.

Knows: rows and heads. Does not know: what the heads are for.
Letters: T packed tokens, N heads, K input width, O output width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.numbers import has_code
from pilotfish_kimi_k25.kernels.head_linear import eager, native
from pilotfish_kimi_k25.kernels.head_linear.probe import head_row_multiple

__all__ = ["head_linear", "head_row_multiple"]


def head_linear(x: torch.Tensor, weight: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """Return every row's heads times their own weights, accumulated in float32.

    x: [T, N, K], contiguous in K, heads and rows may be strided. weight: [N, O, K] of x's dtype
        (native: of any float dtype, and contiguous, or it is copied in every call).
    Returns a new [T, N, O] of that dtype, contiguous in O; heads and rows may be strided.
    A row's bits depend on that row and the weight only: on native always, on triton too (unless
    backend.invariant is off); on torch if T is a multiple of what `head_row_multiple` returned.
    Raises ValueError when shapes or dtypes do not fit.
    """
    is_native = backend.name == "native"
    fits = has_code(x.dtype, weight.dtype) if is_native else x.dtype == weight.dtype
    if x.ndim != 3 or weight.shape[::2] != x.shape[1:] or not fits:
        raise ValueError(
            f"x is {list(x.shape)} {x.dtype} and the weight {list(weight.shape)} {weight.dtype}; "
            "wanted [T, N, K] and [N, O, K] of one dtype"
        )
    if backend.name == "triton":
        from pilotfish_kimi_k25.kernels.head_linear import triton

        return triton.head_linear(x, weight)
    if is_native:
        return native.head_linear(x, weight)
    multiply = eager.head_linear_in_blocks if backend.invariant else eager.head_linear
    return multiply(x, weight)
