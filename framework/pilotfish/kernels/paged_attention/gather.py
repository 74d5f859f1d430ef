"""Gather: memory that keys and values are copied into from their pages, shared by all layers.

Knows: slots of the cache. Does not know: requests, partitions or masks.
Letters as in the package, and: I runs of C keys each.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch

from pilotfish.kernels.paged_attention.plan import AttentionPlan


class RowKind(NamedTuple):
    """A cache row as attention computes with it: [2, num_kv_heads, width] of dtype.

    shared: a row is key and value at once, [num_kv_heads, width].
    """

    num_kv_heads: int
    width: int
    dtype: torch.dtype
    shared: bool = False


@attrs.frozen(kw_only=True)
class Gather:
    """slots: [I*C] int64 rows of the cache; k, v: [I, K, C, H] views of the scratch `rows`.

    rows: [I*C, 2, K, H], or [I*C, K, H] for shared ones.

    The scratch belongs to the plan and is used by one call after another.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def make(cls, plan: AttentionPlan, slots: torch.Tensor, num_runs: int, row: RowKind) -> Gather:
        """slots: [I*C] int64; num_runs: I."""
        heads = (row.num_kv_heads, row.width)
        rows = plan.scratch((slots.shape[0], *(() if row.shared else (2,)), *heads), row.dtype)
        runs = rows.view(num_runs, -1, *rows.shape[1:])
        if row.shared:
            k = v = runs.transpose(1, 2)
        else:
            k, v = runs.transpose(1, 3).unbind(2)
        return cls(slots=slots, rows=rows, k=k, v=v)

    def fill(self, cache_rows: torch.Tensor) -> None:
        """cache_rows: [P*S, (2,) K, H']. A wider row keeps the zeros the scratch was made with."""
        width = cache_rows.shape[-1]
        if width == self.rows.shape[-1] and cache_rows.dtype == self.rows.dtype:
            torch.index_select(cache_rows, 0, self.slots, out=self.rows)
        else:
            self.rows[..., :width].copy_(cache_rows.index_select(0, self.slots))
