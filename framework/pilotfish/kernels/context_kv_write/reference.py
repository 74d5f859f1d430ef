"""write_context_kv as the definition reads: one row and one layer at a time, float32 inside.

Slow: the other implementations are judged by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilotfish.kernels.rms_norm.reference import rms_norm
from pilotfish.kernels.rope.reference import apply_rope


def write_context_kv(
    kv: torch.Tensor,
    k_weight: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    caches: Sequence[torch.Tensor],
    write_slots: torch.Tensor,
    *,
    eps: float,
) -> None:
    """Arguments as the public function."""
    cos, sin = angles
    for layer, cache in enumerate(caches):
        for t, slot in enumerate(write_slots.tolist()):
            page, offset = divmod(slot, cache.shape[1])
            key_KH, value_KH = kv[t, layer]
            normed_KH = rms_norm(key_KH, k_weight[layer], eps, "before_weight")
            rope_1KH = apply_rope(normed_KH[None].clone(), cos[t : t + 1], sin[t : t + 1], False)
            cache[page, offset, 0] = rope_1KH[0]
            cache[page, offset, 1] = value_KH
