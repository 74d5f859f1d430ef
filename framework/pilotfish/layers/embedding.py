"""Embedding: token ids to rows, of a table as it lies.

Axis letters: T packed tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, lookup_rows, prepare_blocks, prepare_linear
from pilotfish.kernels.linear.planned import plan_lookup_rows
from pilotfish.kernels.native.buffers import Buffer, Pointer
from pilotfish.layers.layer import Layer
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.weights import StoredRows


class Embedding(Layer):
    """A table of rows; `multiplier` scales what is looked up: the product is rounded, once.

    rounds_multiplier: it is rounded to the run's dtype before, as Gemma's root of the width is.
    weight: [V, D] of the run's dtype; None where the file's rows are used, of another form.
    """

    takes_stored = True
    weight: torch.Tensor | None
    _table: torch.Tensor | LinearWeight

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        multiplier: float = 1.0,
        rounds_multiplier: bool = False,
    ) -> None:
        self.vocab_size, self.width = vocab_size, width
        self.multiplier, self.rounds_multiplier = multiplier, rounds_multiplier
        self.declare("weight", (vocab_size, width))

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Keeps the table."""
        del backend
        self._table = _table_of(tensors["weight"])
        self.weight = None if isinstance(self._table, LinearWeight) else self._table

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> a new [T, D] in the run's dtype."""
        rows = self.rows(tokens)
        if self.multiplier == 1.0:
            return rows
        factor = self.multiplier
        if self.rounds_multiplier:
            factor = torch.tensor(factor, dtype=torch.float32).to(rows.dtype).item()
        return rows.mul_(factor)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> a new [T, D], what the table says of each."""
        table = self._table
        if isinstance(table, LinearWeight):
            return lookup_rows(table, tokens, table.dtype)
        return table.index_select(0, tokens)

    def plan(self, run: PassPlan, tokens: Pointer, out: Buffer) -> Buffer:
        """As `__call__`, without a multiplier; tokens: [T] int64, all of them in the table."""
        assert self.multiplier == 1.0, self.multiplier
        table = self._table
        if not isinstance(table, LinearWeight):
            table = prepare_linear(table, backend=run.backend)
        return plan_lookup_rows(run.plan, tokens, table, out)


def _table_of(weight: torch.Tensor | StoredRows) -> torch.Tensor | LinearWeight:
    """Rows of the run's dtype; or of another form, as the file has them."""
    plain = weight.plain if isinstance(weight, StoredRows) else weight
    if plain is not None:
        return plain
    assert isinstance(weight, StoredRows)
    return prepare_blocks(weight.parts, dtype=weight.dtype)
