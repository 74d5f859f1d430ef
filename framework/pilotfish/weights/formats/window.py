"""A stretch of a file as a tensor, without holding the rest of the file in memory.

Knows: byte offsets. Does not know: formats, names or shapes.
The bytes are mapped, each stretch by itself and copied on write. No file stays open: Python's own
mmap keeps a descriptor for each stretch, and a model has more matrices than a process may have open
files. A layer that uses rows as they lie keeps the mapping: the weights take the file's cache and
nothing else, and processes share it. A layer that packs its weight reads it once from that cache,
half the memory traffic of reading into a buffer first (measured: loading takes 0.4 to 0.65 of the
time), and gives the mapping up. A stretch of a few pages, as a norm has, is read: a mapping of it
costs more.
A file may be deleted, or replaced by another under its name (as downloads do), while a model that
was loaded from it runs: the mapping holds the old one. Writing into it changes the model's weights
under its feet, and cutting it short ends the process: no mapped file can be kept from that.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotfish.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SMALL_BYTES = 16 * 1024
_MAP_FIXED = 0x10
"""Of mmap on Linux and macOS; Python's module does not name it."""


def read_window(path: Path, offset: int, num_bytes: int) -> torch.Tensor:
    """Bytes offset to offset + num_bytes of a file as a tensor [num_bytes] uint8.

    The tensor may be written to; the file does not change. Raises CheckpointError when the file has
    become shorter or unreadable since it was opened.
    """
    import torch

    if not num_bytes:
        return torch.empty(0, dtype=torch.uint8)
    start = offset % mmap.ALLOCATIONGRANULARITY
    held: bytearray | mmap.mmap
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset + num_bytes:
                raise OSError(f"the file ends at byte {size}")
            if num_bytes > _SMALL_BYTES:
                held = _map(file.fileno(), start + num_bytes, offset - start)
            else:
                held, start = bytearray(num_bytes), 0
                file.seek(offset)
                if file.readinto(held) != num_bytes:
                    raise OSError("the file ends within them")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: bytes {offset} to {offset + num_bytes} cannot be read ({error}); "
            "the file changed after it was opened: load it again"
        ) from error
    return torch.frombuffer(held, dtype=torch.uint8, offset=start, count=num_bytes)


def _map(descriptor: int, num_bytes: int, offset: int) -> mmap.mmap:
    """A writable stretch of a file that changes no file and keeps none open."""
    if sys.platform == "win32":
        return mmap.mmap(descriptor, num_bytes, access=mmap.ACCESS_COPY, offset=offset)
    # Memory of Python's, with the file mapped over it: Python unmaps it, and has no descriptor.
    mapped = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    rights, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    if _c_mmap()(address, num_bytes, rights, flags, descriptor, offset) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mapped


@cache
def _c_mmap() -> Any:
    """The C library's own."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    function.argtypes = [pointer, size, number, number, number, ctypes.c_int64]
    function.restype = pointer
    return function
