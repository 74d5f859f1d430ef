"""Combine rows: the weighted sum of several rows for each row of a pass.

Knows: the order of the sum. Does not know: where rows and weights come from.
Letters: R rows to choose from, T rows of the pass, T' with padding, S rows that each of them adds
up, D width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.combine_rows import eager, native

__all__ = ["combine_rows"]


def combine_rows(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None = None,
    *,
    num_rows: int | None = None,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return `sum_s weights[t, s] * x[places[t, s]] + last[t]`: float32, s ascending, one rounding.

    x: [R, D] float; places: [T, S] int64; weights: [T, S] float32; last: [T', D] of x's dtype, or
    None. num_rows: T' >= T, None: T; the rows past T are sums of no terms but `last`.
    On torch a product may be fused with its sum. Returns a new [T', D] of x's dtype.
    Raises ValueError (torch: its own error) for a place that x has not, or another shape or dtype.
    A row's bits depend on that row's own terms only.
    """
    count = places.shape[0] if num_rows is None else num_rows
    if backend.name == "triton":
        from pilotfish.kernels.combine_rows import triton

        return triton.combine_rows(x, places, weights, last, count)
    if backend.name == "native":
        return native.combine_rows(x, places, weights, last, count)
    return eager.combine_rows(x, places, weights, last, count)
