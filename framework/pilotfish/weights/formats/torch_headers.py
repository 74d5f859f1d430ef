"""What a torch file on the hub says of its tensors, read without the tensors.

Knows: the zip archive that torch.save writes, and the few calls in its pickle. Does not know: what
the tensors are for. Nothing that the pickle names is run.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from pilotfish.errors import CheckpointError
from pilotfish.weights.hub.access import RemoteFile
from pilotfish.weights.source import TensorInfo

_BLOCK = 256 * 1024
"""Bytes of a request: as a rule the pickle, at the beginning, or the directory, at the end."""
_DTYPES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""Kind of storage -> the dtype's name, and bytes of a number."""


def torch_infos(file: RemoteFile) -> Mapping[str, TensorInfo] | None:
    """Every tensor of the file; None for a file that only torch itself can read, or refuse.

    Raises CheckpointError where the hub cannot be asked.
    """
    try:
        with zipfile.ZipFile(_RangeFile(file)) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith("/data.pkl")]
            with archive.open(name) as data:
                found = _Unpickler(data).load()
    except CheckpointError:
        raise
    except Exception:  # bytes that are none of its own make them raise anything
        return None
    fits = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(info, TensorInfo) for name, info in found.items()
    )
    return found if fits else None


def _tensor(kind: str, offset: int, size: tuple[int, ...], *_: Any) -> TensorInfo:
    del offset
    dtype, num_bytes = _DTYPES[kind]
    return TensorInfo(tuple(size), dtype, math.prod(size) * num_bytes)


_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", kind): kind for kind in _DTYPES},
}
"""What stands for the globals of the pickle; a storage's kind is its name."""


class _Unpickler(pickle.Unpickler):
    """Makes a TensorInfo of each tensor."""

    def find_class(self, module: str, name: str) -> Any:
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """pid: ("storage", its kind, ...) -> the kind."""
        return pid[1]


class _RangeFile(io.RawIOBase):
    """A remote file, read block by block; one that was read is kept."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        head, self._size = file.read(0, _BLOCK)
        self._blocks = {0: head}
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} of a file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._piece()[: len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _piece(self) -> bytes:
        """What is known from here on; a request where that is nothing."""
        for begin, block in self._blocks.items():
            if begin <= self._at < begin + len(block):
                return block[self._at - begin :]
        begin = min(self._at, max(0, self._size - _BLOCK))  # the end is read backwards
        if self._at >= self._size:
            return b""
        self._blocks[begin] = self._file.read(begin, _BLOCK)[0]
        return self._blocks[begin][self._at - begin :]
