"""StoredRows: a matrix whose rows are used as the file has them, where they lie.

Knows: which tensors can be used so, and parts of several kinds under one another. Does not know:
file formats, or how rows are multiplied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from pilotfish.weights.source import TensorInfo

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Kinds of plain numbers that are multiplied as they are, and the bytes of each."""
PACKED_KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Kinds of blocks that are multiplied as they are."""


@attrs.frozen(eq=False)
class StoredRows:
    """shape: (O, K). dtype: the run's, of rows that are multiplied with it or looked up in it.

    parts: rows that follow one another, packed or of a float dtype that need not be the run's.
    Their memory is the mapped file's, or shared: nobody writes to it.
    """

    shape: tuple[int, int]
    parts: tuple[PackedRows, ...]
    dtype: torch.dtype

    @property
    def plain(self) -> torch.Tensor | None:
        """The whole as one contiguous tensor of the run's dtype, where that is what it is."""
        first, *others = self.parts
        if others or first.blocks.dtype != self.dtype or not first.blocks.is_contiguous():
            return None
        return first.blocks


@runtime_checkable
class PackedSource(Protocol):
    """A WeightSource that may have packed tensors."""

    def load_packed(self, name: str) -> PackedRows | None:
        """One tensor's rows, mapped; None where it is not packed, or no matrix. Raises KeyError."""
        ...


def stays_stored(info: TensorInfo, dtype: str) -> bool:
    """Whether a tensor of the file is used as it is by a layer that takes StoredRows.

    dtype: the run's. Packed matrices are, and floats unless the run's are narrower: then fewer
    bytes were asked for.
    """
    if len(info.shape) != 2:
        return False
    if info.dtype in PACKED_KINDS:
        return True
    return 0 < FLOAT_BYTES.get(info.dtype, 0) <= FLOAT_BYTES[dtype]
