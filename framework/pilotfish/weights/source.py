"""WeightSource: a checkpoint's tensors by name, with shapes known before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen
class TensorInfo:
    """What a checkpoint says of one tensor.

    shape: of the tensor as loaded. dtype: on disk, e.g. "bfloat16" or "Q4_1". num_bytes: on disk.
    """

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


class WeightSource(Protocol):
    """A lazy mapping from tensor name to tensor. Reading a tensor twice reads the disk twice."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor in the checkpoint, from the headers alone."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """One tensor, the caller's own: read or mapped, dequantized if need be. Raises KeyError."""
        ...

    def __iter__(self) -> Iterator[str]:
        """The tensors' names."""
        return iter(self.infos)
