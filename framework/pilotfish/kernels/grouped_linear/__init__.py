"""Grouped linear: rows sorted by group, each group with a weight of its own.

Knows: which rows belong to which weight, and how that is multiplied without visiting a weight
that no row wants. Does not know: who sorts rows into groups, or why (experts, adapters).
Letters: T rows of a pass, S groups (experts) of a row, R sorted rows, E groups, K and O widths.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.grouped_linear import eager, native
from pilotfish.kernels.grouped_linear.groups import RowGroups, group_rows
from pilotfish.kernels.grouped_linear.weight import GroupedWeight, GroupedWeightBuilder

__all__ = ["GroupedWeight", "GroupedWeightBuilder", "RowGroups", "group_rows", "grouped_linear"]


def grouped_linear(
    x: torch.Tensor,
    weight: GroupedWeight,
    groups: RowGroups,
    *,
    backend: KernelBackend,
    gather: bool = False,
) -> torch.Tensor:
    """Return `x[r] @ weight[group of r].T` for every sorted row, accumulated in float32.

    x: [R, K] of the weight's dtype (native: any float), rows in the order of `groups`; or, with
    gather, the pass's own rows [T, K], of which sorted row r is `groups.rows[r]` (native copies
    none of them). Returns a new [R, O] of x's dtype; what stands in padding rows means nothing.
    A row's bits depend on that row and its group's weight only: on triton and native always; on
    torch as in `linear` (groups that were padded to the weights' `row_multiple` save copies).
    No copy to the host on triton; on a CPU `groups` holds plain numbers already.
    """
    if backend.name == "native":
        return native.grouped_linear(x, weight, groups, gather=gather)
    if gather:
        x = x.index_select(0, groups.rows)
    if backend.name == "triton":
        from pilotfish.kernels.grouped_linear import triton

        return triton.grouped_linear(x, weight, groups)
    return eager.grouped_linear(x, weight, groups, invariant=backend.invariant)
