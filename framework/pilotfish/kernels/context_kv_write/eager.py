"""write_context_kv on a CPU: all layers' keys normed and turned in the calls of one.

Knows: that a call costs about 1 us before it computes anything. Does not know: Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels.rms_norm.eager import rms_norm
from pilotfish.kernels.rope.eager import apply_rope


def write_context_kv(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    eps: float,
) -> None:
    """Arguments as the public function; overwrites the keys in kv."""
    num_rows = write_slots.shape[0]
    if num_rows == 0:
        return
    keys = kv[:, :, 0]
    normed = rms_norm(keys, None, eps, "before_weight").contiguous().mul_(k_weight.unsqueeze(1))
    apply_rope(normed.flatten(1, 2), *angles, False)
    keys.copy_(normed)
    for layer, cache in enumerate(caches):
        cache.flatten(0, 1).index_copy_(0, write_slots, kv[:num_rows, layer])
