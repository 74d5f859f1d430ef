"""current_device: on which GPU kernels are launched.

Knows: that Triton launches on the thread's current GPU, wherever its arguments lie. Does not know:
who launches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the calling thread's current one for a while; nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
