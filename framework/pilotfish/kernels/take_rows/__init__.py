"""take_rows: some rows of a matrix, in an order of one's own.

Knows: rows and places. Does not know: why these are wanted.
Letters: T rows, R rows taken, D their width.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend, on_native
from pilotfish.kernels.take_rows import native

__all__ = ["take_rows"]


@on_native(native.take_rows)
def take_rows(x: torch.Tensor, index: torch.Tensor, *, backend: KernelBackend) -> torch.Tensor:
    """x: [T, D]; index: [R] int64, each from 0 to T - 1 -> a new [R, D]. Bits are copied.

    Raises ValueError (torch: its own error) for another index.
    """
    return x.index_select(0, index)
