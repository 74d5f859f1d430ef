"""Grouped linear on a CPU: one linear layer for each group that has rows.

Knows: `kernels.linear` and its packed weights. Does not know: Triton.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.grouped_linear.groups import RowGroups
from pilotfish.kernels.grouped_linear.weight import GroupedWeight
from pilotfish.kernels.linear import eager


def grouped_linear(
    x: torch.Tensor, weight: GroupedWeight, groups: RowGroups, *, invariant: bool
) -> torch.Tensor:
    """x: [R, K]; returns a new [R, O], as the public function."""
    if not groups.spans:
        return x.new_empty((0, weight.out_features))
    rows = x.split_with_sizes([end - start for _, start, end in groups.spans])
    separate = weight.separate
    weights = [separate[group] for group, _, _ in groups.spans]
    parts = eager.linear_each(rows, weights, in_blocks=invariant)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
