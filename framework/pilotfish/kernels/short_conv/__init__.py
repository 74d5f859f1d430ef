"""Gated short convolution: `c * conv(b * x)`, causal and depthwise, over a ragged batch.

Knows: rows, and where the columns before them lie. Does not know: requests or who owns a column.
Letters: T packed tokens, T' rows with padding, D model width, M columns of memory; a column is one
row's `u = b * x`, [D], and width is the number of columns that an output row sums up.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.short_conv import eager, native
from pilotfish.kernels.short_conv.columns import ColumnRun, ConvColumns

__all__ = ["ColumnRun", "ConvColumns", "short_conv"]


@on_native(native.short_conv)
def short_conv(
    bcx: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: ConvColumns,
    layer: int,
    *,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `c * (bias + sum_j weight[j] * column(t - width + 1 + j))` for every row t.

    bcx: [T', 3D] float, b, c and x side by side; T' >= T, rows past T are padding.
    weight: [width, D] float32, the row's own column last. bias: [D] float32 or None.
    columns, layer: where each row's columns lie. Prefill, chunk, verify and decode rows may be
    mixed. Mutated: each row's own column `b * x`, rounded to bcx.dtype, is written to its place in
    the memory of that layer; nothing else there changes.
    Returns a new [T', D] of bcx.dtype, padding rows 0. The sum is taken in float32 from the oldest
    column to the own one, then the bias; it is rounded before it is multiplied with c.
    Work and memory grow with T, not with its square.
    A row's bits depend on that row, the width - 1 columns before it and the weights only.
    Source: Hasani et al. 2025 (Liquid AI), the double-gated short convolution of their blocks.
    """
    if backend.name == "triton":
        from pilotfish.kernels.short_conv import triton

        return triton.short_conv(bcx, weight, bias, columns, layer)
    return eager.short_conv(bcx, weight, bias, columns, layer)
