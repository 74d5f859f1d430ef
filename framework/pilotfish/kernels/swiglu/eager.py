"""SwiGLU on a CPU.

Knows: for which dtypes torch's silu gives an element the same bits wherever it lies.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.elementwise.eager import silu


def swiglu(gate_up: torch.Tensor, *, invariant: bool) -> torch.Tensor:
    """gate_up: [T, 2I]; returns [T, I], as the public function."""
    gate, up = gate_up.chunk(2, dim=-1)
    if gate_up.dtype == torch.float32 and invariant:
        return silu(gate).mul_(up)
    return torch.nn.functional.silu(gate).mul_(up)
