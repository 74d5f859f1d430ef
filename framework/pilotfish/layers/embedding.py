"""Embedding: token ids to rows.

Axis letters: T packed tokens, V vocabulary, D model width.
"""

from __future__ import annotations

import torch

from pilotfish.layers.layer import Layer


class Embedding(Layer):
    """A table of rows; `multiplier` scales what is looked up, in the table's dtype."""

    weight: torch.Tensor

    def __init__(self, vocab_size: int, width: int, *, multiplier: float = 1.0) -> None:
        self.multiplier = multiplier
        self.declare("weight", (vocab_size, width))

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> a new [T, D] in the table's dtype."""
        rows = self.weight.index_select(0, tokens)
        return rows if self.multiplier == 1.0 else rows.mul_(self.multiplier)
