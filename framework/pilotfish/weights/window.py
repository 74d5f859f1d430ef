"""A stretch of a file as a tensor, without holding the rest of the file in memory.

Knows: byte offsets. Does not know: formats, names or shapes.
The bytes are mapped, each stretch by itself and copied on write. A layer that uses rows as they lie
keeps the mapping: the weights take the file's cache and nothing else, and processes share it. A
layer that packs its weight reads it once from that cache, half the memory traffic of reading into a
buffer first (measured: loading takes 0.4 to 0.65 of the time), and gives the mapping up.
A file may be deleted, or replaced by another under its name (as downloads do), while a model that
was loaded from it runs: the mapping holds the old one. Writing into it changes the model's weights
under its feet, and cutting it short ends the process: no mapped file can be kept from that.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def read_window(path: Path, offset: int, num_bytes: int) -> torch.Tensor:
    """Maps bytes offset to offset + num_bytes of a file as a tensor [num_bytes] uint8.

    The tensor may be written to; the file does not change. Raises CheckpointError when the file has
    become shorter or unreadable since it was opened.
    """
    import torch

    if not num_bytes:
        return torch.empty(0, dtype=torch.uint8)
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset + num_bytes:
                raise OSError(f"the file ends at byte {size}")
            length = offset - start + num_bytes
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: bytes {offset} to {offset + num_bytes} cannot be read ({error}); "
            "the file changed after it was opened: load it again"
        ) from error
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=offset - start, count=num_bytes)
