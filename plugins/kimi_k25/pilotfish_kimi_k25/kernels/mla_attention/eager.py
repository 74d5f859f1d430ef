"""The absorbed form on the CPU: one kv head whose rows are keys and values at once."""

from __future__ import annotations

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import AttentionPlan, paged_attention


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: AttentionPlan,
    *,
    latent_width: int,
    scale: float,
    backend: KernelBackend,
) -> torch.Tensor:
    """Arguments and result as `attend_absorbed`; backend: "torch" or "native".

    torch sums the turned part along with the values and then leaves it out: its flash kernel takes
    values as wide as keys only.
    """
    return paged_attention(q, cache, plan, scale=scale, value_width=latent_width, backend=backend)
