"""SwiGLU on a CPU.

Knows: for which dtypes torch's silu gives an element the same bits wherever it lies.
"""

from __future__ import annotations

import torch

from pilotfish.platform.constants import constant


def swiglu(gate_up: torch.Tensor, *, invariant: bool) -> torch.Tensor:
    """gate_up: [T, 2I]; returns [T, I], as the public function."""
    gate, up = gate_up.chunk(2, dim=-1)
    if gate_up.dtype == torch.float32 and invariant:
        return _silu_elementwise(gate).mul_(up)
    return torch.nn.functional.silu(gate).mul_(up)


def _silu_elementwise(gate: torch.Tensor) -> torch.Tensor:
    """silu of float32 without torch's fused one, which rounds an array's last elements otherwise.

    Its vector body and its scalar tail use different exponentials (4 % of the elements differ in
    the last bit), and where the tail lies depends on the number of rows. `torch.exp` has no such
    seam; the other operations here are exact. In the 16-bit types all 65536 values agree.
    """
    return torch.div(gate, gate.neg().exp_().add_(constant(1.0, device=gate.device)))
