"""Block: one layer of a decoder. The contract that the decoder runs, and the pre-norm block.

Knows: the order of norm, attention, feed-forward and residual add. Does not know: their insides.
Axis letters: T packed tokens, D model width.
"""

from __future__ import annotations

from typing import Protocol

import torch

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
    kernel; so blocks hand over both, and the stream of boundary i is `residual + multiplier * x`
    after block i-1.
    """

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T, D], what the part before put out; residual: [T, D] without it, None at the start.

        Returns the same pair for the next block; may update `residual` in place.
        """
        raise NotImplementedError


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
        self, x: torch.Tensor, residual: torch.Tensor | None, run: ForwardPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Block`."""
        backend, multiplier = run.backend, self.residual_multiplier
        normed, residual = self.attention_norm.add(x, residual, backend, multiplier)
        x = self.attention(normed, run)
        normed, residual = self.mlp_norm.add(x, residual, backend, multiplier)
        return self.mlp(normed, run), residual

    def plan(self, run: PassPlan, x: Buffer, residual: Buffer | None) -> tuple[Buffer, Buffer]:
        """As `__call__`."""
        multiplier = self.residual_multiplier
        normed, residual = run.add_norm(self.attention_norm, x, residual, multiplier)
        x = run.sublayer(self.attention, normed)
        normed, residual = run.add_norm(self.mlp_norm, x, residual, multiplier)
        return run.sublayer(self.mlp, normed), residual
