"""Constants of a formula as tensors: adding a Python number to a tensor costs twice as much."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=256)
def constant(
    value: float, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A tensor without dimensions, shared by all who ask: never to be written."""
    with torch.inference_mode(False):  # who asks first may be in it, and others not
        return torch.scalar_tensor(value, dtype=dtype, device=device)
