"""Block: one layer of a decoder. The contract that the decoder runs, and the pre-norm block.

Knows: the order of norm, attention, feed-forward and residual add. Does not know: their insides.
Axis letters: T packed tokens, D model width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pilotfish.errors import PluginError
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.norm import Norm
from pilotfish.layers.pass_plan import PassPlan


class Sublayer(Protocol):
    """Attention, a feed-forward, a mixture of experts: [T, D] rows in, [T, D] new rows out."""

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] normed rows, padding included."""
        ...


class Block(Layer):
    """What the decoder asks of a layer.

    A sublayer's output is added to the residual stream by the norm that reads the sum, in one
    kernel; so blocks hand over both, and the stream of boundary i is `stream + multiplier * x`
    after block i-1.
    """

    def __call__(
        self, x: torch.Tensor, stream: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T, D], what the part before put out; stream: [T, D] without it, None at the start.

        Returns the same pair for the next block; may update `stream` in place.
        """
        raise NotImplementedError


def pair_of(block: object, made: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a block returned. Raises PluginError naming the block where it is no pair of tensors."""
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], torch.Tensor):
        return made
    got = [type(each).__name__ for each in made] if isinstance(made, tuple) else type(made).__name__
    raise PluginError(
        f"the block {type(block).__name__} returned {got}; wanted (x, stream), its last sublayer's "
        "output and the residual stream without it: the norm that reads their sum adds them"
    )


class PreNormBlock(Block):
    """`h = h + m * attention(norm(h)); h = h + m * mlp(norm(h))`; m is `residual_multiplier`."""

    def __init__(
        self,
        attention_norm: Norm,
        attention: Sublayer,
        mlp_norm: Norm,
        mlp: Sublayer,
        *,
        residual_multiplier: float = 1.0,
    ) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.residual_multiplier = residual_multiplier

    def __call__(
        self, x: torch.Tensor, stream: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Block`."""
        backend, multiplier = run.backend, self.residual_multiplier
        normed, stream = self.attention_norm.add(x, stream, backend, multiplier)
        x = self.attention(normed, run)
        normed, stream = self.mlp_norm.add(x, stream, backend, multiplier)
        return self.mlp(normed, run), stream

    def plan(self, run: PassPlan, x: Buffer, stream: Buffer | None) -> tuple[Buffer, Buffer]:
        """As `__call__`."""
        multiplier = self.residual_multiplier
        normed, stream = run.add_norm(self.attention_norm, x, stream, multiplier)
        x = run.sublayer(self.attention, normed)
        normed, stream = run.add_norm(self.mlp_norm, x, stream, multiplier)
        return run.sublayer(self.mlp, normed), stream
