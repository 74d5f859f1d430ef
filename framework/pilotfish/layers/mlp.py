"""GatedMLP: the feed-forward part of a block, `down(silu(gate) * up)`.

Axis letters: T packed tokens, D model width, I intermediate width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.swiglu import swiglu
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear


class GatedMLP(Layer):
    """SwiGLU feed-forward (Shazeer 2020). gate and up are one weight, [2I, D], gate first."""

    def __init__(self, width: int, intermediate_size: int, *, bias: bool = False) -> None:
        self.gate_up = Linear(width, 2 * intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, width, bias=bias)

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> [T, D]."""
        backend = run.backend
        return self.down(swiglu(self.gate_up(x, backend), backend=backend), backend)
