"""GatedMLP: the feed-forward part of a block, `down(silu(gate) * up)`.

Axis letters: T packed tokens, D model width, I intermediate width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.swiglu import swiglu
from pilotfish.kernels.swiglu.native import plan_swiglu
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.layers.splitting import why_whole
from pilotfish.parallel.group import Groups


class GatedMLP(Layer):
    """SwiGLU feed-forward (Shazeer 2020). gate and up are one weight, [2I, D], gate first."""

    def __init__(self, width: int, intermediate_size: int, *, bias: bool = False) -> None:
        self.gate_up = Linear(width, 2 * intermediate_size, bias=bias)
        self.down: Linear | RowParallelLinear = Linear(intermediate_size, width, bias=bias)

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank some of the I columns; a subclass of another sum stays whole."""
        gate_up, down = self.gate_up, self.down
        if why_whole(self, GatedMLP, {"gate_up": Linear, "down": Linear}):
            super().shard(groups, name)
            return
        assert isinstance(down, Linear)
        inner = down.in_features
        self.down = RowParallelLinear(down, groups, f"{name}down")
        own = groups.tensor.share(inner)
        gate_up.keep_rows(own, range(inner + own.start, inner + own.stop))

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> [T, D]."""
        backend = run.backend
        return self.down(swiglu(self.gate_up(x, backend), backend=backend), backend)

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__`."""
        return run.linear(self.down, plan_swiglu(run.plan, run.linear(self.gate_up, x)))
