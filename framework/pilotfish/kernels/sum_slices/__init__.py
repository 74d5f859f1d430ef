"""Sum of slices: the partial products of a row, added in the order of a fixed binary tree.

Knows: the tree (`parallel/reduction.py` says why). Does not know: what the slices are of.
Letters: T rows, S slices, O width of each.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.sum_slices import native
from pilotfish.parallel.reduction import join

__all__ = ["sum_slices"]


@on_native(native.sum_slices)
def sum_slices(
    terms: torch.Tensor,
    num_slices: int,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return the sum of S terms of every row, and the bias, rounded once.

    terms: [T, S * O] float32, a row's terms side by side. bias: [O] float, or None.
    Returns a new [T, O] of out_dtype. Additions are float32: the terms in the order of the tree
    that `parallel.reduction` describes, then the bias, so that every backend gives the same bits.
    Raises ValueError where the terms have no S slices, or the bias does not fit them.
    """
    check(terms, num_slices, bias)
    parts = torch.split(terms, terms.shape[1] // num_slices, dim=1)
    known = {(i, i + 1): part.clone() for i, part in enumerate(parts)}
    whole = join((0, num_slices), known)
    return (whole if bias is None else whole.add_(bias.float())).to(out_dtype)


check = native.check
