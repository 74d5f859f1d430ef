"""Reading a stretch of a file as a tensor, without holding the rest of the file in memory.

Knows: byte offsets. Does not know: formats, names or shapes.
The bytes are read, not mapped: measured as fast, and a file that is replaced while the process
lives can neither change weights nor kill it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def read_window(path: Path, offset: int, num_bytes: int) -> torch.Tensor:
    """Reads bytes offset to offset + num_bytes of a file into a new tensor [num_bytes] uint8.

    Raises CheckpointError when the file has become shorter or unreadable since it was opened.
    """
    import torch

    data = torch.empty(num_bytes, dtype=torch.uint8)
    view = data.numpy().data
    num_read = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while num_read < num_bytes:
                count = file.readinto(view[num_read:])
                if not count:
                    raise OSError(f"the file ends at byte {offset + num_read}")
                num_read += count
    except OSError as error:
        raise CheckpointError(
            f"{path}: bytes {offset} to {offset + num_bytes} cannot be read ({error}); "
            "the file changed after it was opened: load it again"
        ) from error
    return data
