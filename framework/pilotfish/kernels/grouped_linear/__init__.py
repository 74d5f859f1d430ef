"""Grouped linear: rows sorted by group, each group with a weight of its own.

Knows: which rows belong to which weight, and how that is multiplied without visiting a weight
that no row wants. Does not know: who sorts rows into groups, or why (experts, adapters).
Letters: T rows of a pass, S groups (experts) of a row, R sorted rows, E groups, K and O widths.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.grouped_linear import eager
from pilotfish.kernels.grouped_linear.groups import RowGroups, group_rows
from pilotfish.kernels.grouped_linear.weight import GroupedWeight, GroupedWeightBuilder

__all__ = ["GroupedWeight", "GroupedWeightBuilder", "RowGroups", "group_rows", "grouped_linear"]


def grouped_linear(
    x: torch.Tensor, weight: GroupedWeight, groups: RowGroups, *, backend: KernelBackend
) -> torch.Tensor:
    """Return `x[r] @ weight[group of r].T` for every sorted row, accumulated in float32.

    x: [R, K] of the weight's dtype, rows in the order of `groups` (`x_TK[groups.rows]`).
    Returns a new [R, O] of that dtype; what stands in padding rows means nothing.
    A row's bits depend on that row and its group's weight only: on triton always; on torch if the
    groups were padded to what `row_multiple` returned for the weights.
    No copy to the host on triton; on torch `groups` holds plain numbers already.
    """
    if backend.name == "triton":
        from pilotfish.kernels.grouped_linear import triton

        return triton.grouped_linear(x, weight, groups)
    return eager.grouped_linear(x, weight, groups)
