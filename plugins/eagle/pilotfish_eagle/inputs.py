"""Inputs of a Llama target and its EAGLE draft as one model, and memory that they may live in."""

from __future__ import annotations

from typing import Self

import attrs
import torch

from pilotfish.protocols import TensorRecord
from pilotfish.speculation.unified import UnifiedInputs


@attrs.frozen(kw_only=True)
class PersistentInputBuffers(TensorRecord):
    """Memory that outlives a step, for graph capture: a step's inputs are copied to its start.

    tokens: [rows of the largest batch] int64. input_row_offsets: [requests of it + 1] int32.
    """

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor

    @classmethod
    def alloc(
        cls, max_batch_size: int, max_batch_input_tokens: int, device: torch.device | str
    ) -> Self:
        """Zeros for the largest batch. Raises ValueError when one of the sizes is below 1."""
        for name, size in (
            ("max_batch_size", max_batch_size),
            ("max_batch_input_tokens", max_batch_input_tokens),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; wanted a whole number >= 1")
        return cls(
            tokens=torch.zeros(max_batch_input_tokens, dtype=torch.int64, device=device),
            input_row_offsets=torch.zeros(max_batch_size + 1, dtype=torch.int32, device=device),
        )


@attrs.frozen(kw_only=True)
class UnifiedEagleLlama3Inputs(UnifiedInputs):
    """One step of B requests; the fields are the base's."""
