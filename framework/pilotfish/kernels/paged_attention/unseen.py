"""Keys and values that are not finite, kept from the rows of a pass that may not see them.

Knows: that 0 * NaN is NaN, and how to compute without. Does not know: how attention is computed.
Letters as in the package, and: C rows of the cache that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.kernels.paged_attention.plan import AttentionPlan


def without_unseen(
    out: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    mask_spec: MaskSpec,
    attend: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """out: [T', N, V], what `attend` gave over the cache; returns it, or what it should have been.

    A row that sees no infinity and no NaN gets what it has when the rows of its pass that do are
    finite. Looks further only where `out` is not finite itself, which a sum tells.
    """
    if all(count < 2 for count in plan.row_counts) or (
        mask_spec.mode == "block" and mask_spec.window is None
    ):
        return out
    if math.isfinite(out.sum(dtype=torch.float32).item()):
        return out
    rows = cache.view(cache.shape[0] * cache.shape[1], -1)
    slots, sees = _not_finite(rows, plan, mask_spec, out.shape[0])
    if not slots.numel():
        return out
    kept = rows[slots]
    rows[slots] = kept.where(kept.isfinite(), torch.zeros_like(kept))
    try:
        clean = attend()
    finally:
        rows[slots] = kept
    return torch.where(sees[:, None, None], out, clean)


def _not_finite(
    rows: torch.Tensor, plan: AttentionPlan, mask_spec: MaskSpec, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[C] int64 slots that are not finite and not seen by all, and [T'] bool: who sees any.

    Those of this pass's rows, and cached ones within a window of the first of them.
    """
    sees = torch.zeros(num_rows, dtype=torch.bool)
    found = [torch.empty(0, dtype=torch.int64)]
    for request, (start, count) in enumerate(zip(plan.offsets, plan.row_counts, strict=True)):
        first = plan.lengths[request]
        keys = np.arange(max(0, first - (mask_spec.window or 1) + 1), first + count)
        slots = torch.from_numpy(np.asarray(plan.slots(request, keys)))
        bad = ~rows[slots].isfinite().all(1)
        if bad.any():
            num_keys = np.array(plan.num_keys[request])
            positions = np.arange(first, first + count)[:, None]
            hidden = mask_spec.hidden(positions, keys[bad.numpy()][None], num_keys)
            sees[start : start + count] = torch.from_numpy(~hidden.all(1))
            found.append(slots[bad])
    return torch.cat(found), sees
