"""GGUFFile: the metadata and the tensors of a GGUF file.

Knows: the container format. Does not know: what metadata means, or which tensor is for what.
The header is parsed here because the `gguf` package's reader makes an array of every string: two
seconds for a vocabulary of 49 thousand, against some hundredths.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.errors import CheckpointError
from pilotfish.weights.anew import get_again
from pilotfish.weights.formats.gguf_blocks import BLOCK_TYPES, TYPE_NAMES, BlockType, dequantize
from pilotfish.weights.formats.window import read_window
from pilotfish.weights.lfs import refuse_pointer, refuse_pointers
from pilotfish.weights.source import TensorInfo
from pilotfish.weights.stored_rows import PACKED_KINDS

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows
    from pilotfish.weights.hub.access import RemoteFile
    from pilotfish.weights.hub.snapshot import RemoteGGUF

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _U32, _U64 = 8, 9, 4, 10
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Value type -> struct code."""
_DEFAULT_ALIGNMENT = 32
_FIRST_BYTES = 1 << 20
"""Of a file on the hub, asked for at first; a vocabulary of 150 thousand makes some 6 MB."""
_POINTER_BYTES = 1024
_LENGTH = struct.Struct("<Q")
"""Of a text."""


@attrs.frozen(kw_only=True)
class _Place:
    offset: int
    kind: BlockType
    info: TensorInfo


class GGUFFile:
    """A WeightSource with metadata. Tensors keep the file's names and row order.

    metadata: key -> number, bool, text or list. path: of the file, where it will lie if it is
    `remote`: of a file on the hub the header is read, and it is fetched for the first tensor.
    Shapes are as in torch: the axis that runs fastest comes last. Quantized tensors load as
    float32, or as they are by `load_packed`; F16 and BF16 as they are.

    A file may hold tensors of types that are not read: the metadata is there all the same, and
    `refuse_unread` says which. Raises CheckpointError for a file that is no GGUF, is truncated, or
    whose tensors overlap.
    """

    def __init__(self, path: str | Path, remote: RemoteGGUF | None = None) -> None:
        self.path = Path(path)
        self._remote = remote
        header = self._read_header() if remote is None else _remote_header(remote.file)
        self.metadata, self._places = header.parsed
        self._unread = header.unread
        self._infos = {name: place.info for name, place in self._places.items()}

    def _read_header(self) -> _Header:
        try:
            with (
                self.path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
            ):
                return _Header(self.path, view, len(view))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error
        except ValueError as error:  # an empty file cannot be mapped
            raise CheckpointError(
                f"{self.path}: an empty file; wanted a GGUF file: {get_again(self.path)}"
            ) from error

    def _window(self, place: _Place) -> torch.Tensor:
        """A tensor's bytes; a file on the hub is fetched."""
        if self._remote is not None:
            self._remote.fetch()
            self._remote = None
        return read_window(self.path, place.offset, place.info.num_bytes)

    def refuse_unread(self) -> None:
        """Raises CheckpointError for tensors of types that are not read: how many of which."""
        if not self._unread:
            return
        kinds: dict[str, list[str]] = {}
        for name, kind in self._unread.items():
            kinds.setdefault(kind, []).append(name)
        said = ", ".join(
            f"{len(names)} of {kind} ({names[0]}{' and the like' * (len(names) > 1)})"
            for kind, names in sorted(kinds.items(), key=lambda item: -len(item[1]))
        )
        read = ", ".join(kind.name for kind in BLOCK_TYPES.values())
        raise CheckpointError(
            f"{self.path}: tensor types that are not read: {said}; read: {read}. Take a file "
            "quantized to one of these"
        )

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the file. Raises as `refuse_unread`."""
        self.refuse_unread()
        return self._infos

    def load(self, name: str) -> torch.Tensor:
        """Reads and unpacks one tensor. Raises KeyError for an unknown name."""
        place = self._places[name]
        return dequantize(self._window(place), place.kind).view(place.info.shape)

    def load_packed(self, name: str) -> PackedRows | None:
        """A quantized matrix as it lies in the mapped file; None for any other tensor.

        Raises KeyError for an unknown name.
        """
        place = self._places[name]
        if place.kind.name not in PACKED_KINDS or len(place.info.shape) != 2:
            return None
        from pilotfish.kernels.linear.weight import PackedRows

        rows, columns = place.info.shape
        data = self._window(place)
        return PackedRows(
            blocks=data.view(rows, columns // place.kind.size * place.kind.num_bytes),
            kind=place.kind.name.lower(),
            in_features=columns,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)


class _MoreWanted(Exception):
    """The header goes on, to this byte at least."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted


def _remote_header(file: RemoteFile) -> _Header:
    """The header of a file on the hub, from as few of its bytes as hold it."""
    head, size = file.read(0, _FIRST_BYTES)
    while True:
        try:
            return _Header(file, head, size)
        except _MoreWanted as more:
            wanted = min(max(more.wanted, 4 * len(head)), size)
            head += file.read(len(head), wanted - len(head))[0]
            if len(head) < wanted:
                raise CheckpointError(f"{file}: the hub sends less of it than it has") from more


class _Header:
    """Walks the header; every read is checked against the end of the file.

    file: a Path, or what stands for one on the hub. view: its first bytes. size: of the whole file.
    Raises CheckpointError, and _MoreWanted where the header goes on behind `view`.
    """

    def __init__(self, file: object, view: mmap.mmap | bytes, size: int) -> None:
        self.file = file
        self.view = view
        self.have, self.size = len(view), size
        self.at = 0
        self.unread: dict[str, str] = {}
        """Tensors of types that are not read -> the type's name."""
        self.parsed = self._parse()

    def _parse(self) -> tuple[dict[str, Any], dict[str, _Place]]:
        if self.size < 24 or self.view[:4] != _MAGIC:
            if isinstance(self.file, Path):
                refuse_pointers(self.file)
            refuse_pointer(self.file, self.view[:_POINTER_BYTES])
            raise CheckpointError(
                f"{self.file}: starts with {self.view[:4]!r} and has {self.size} bytes; "
                f"wanted a GGUF file: {get_again(self.file)}"
            )
        self.at = 4
        version = self._u32()
        if version not in _VERSIONS:
            swapped = ", of a machine with the other byte order" if not version & 0xFFFF else ""
            raise CheckpointError(
                f"{self.file}: GGUF version {version}{swapped}; read: {_VERSIONS[0]} and "
                f"{_VERSIONS[1]}, little-endian: convert it again"
            )
        num_tensors, num_values = self._u64(), self._u64()
        self._check_count(num_tensors, 24)
        self._check_count(num_values, 12)
        try:
            metadata = {self._string(): self._value(self._u32()) for _ in range(num_values)}
            raw = [self._tensor() for _ in range(num_tensors)]
        except UnicodeDecodeError as error:
            raise self._corrupt("text that is not UTF-8") from error
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise self._corrupt(f"an alignment of {alignment!r}")
        start = self.at + -self.at % alignment
        return metadata, self._places(raw, start)

    def _places(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], start: int
    ) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for name, shape, kind_id, offset in raw:
            kind = BLOCK_TYPES.get(kind_id)
            if kind is None:
                self.unread[name] = TYPE_NAMES.get(kind_id, f"type {kind_id}")
                continue
            if name in places or (shape and shape[-1] % kind.size):
                raise self._corrupt(f"tensor {name}, {kind.name} {list(shape)}, twice or misshapen")
            num_bytes = math.prod(shape) // kind.size * kind.num_bytes
            if start + offset + num_bytes > self.size:
                raise self._corrupt(
                    f"tensor {name} ends at byte {start + offset + num_bytes} of {self.size}"
                )
            info = TensorInfo(shape, kind.name if kind.unpack else kind.dtype, num_bytes)
            places[name] = _Place(offset=start + offset, kind=kind, info=info)
        places = dict(sorted(places.items(), key=lambda item: item[1].offset))
        end, before = 0, ""
        for name, place in places.items():
            if place.offset < end:
                raise self._corrupt(f"tensor {name} begins within {before}")
            end, before = place.offset + place.info.num_bytes, name
        return places

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        num_axes = self._u32()
        self._check_count(num_axes, 8)
        shape = tuple(reversed([self._u64() for _ in range(num_axes)]))
        return name, shape, self._u32(), self._u64()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0]
        kind, count = self._u32(), self._u64()
        if kind == _STRING:
            return self._strings(count)
        if kind == _ARRAY:
            raise self._corrupt("an array of arrays")
        return list(self._numbers(kind, count))

    def _numbers(self, kind: int, count: int) -> tuple[Any, ...]:
        code = _NUMBERS.get(kind)
        if code is None:
            raise self._corrupt(f"a value of type {kind}")
        num_bytes = struct.calcsize("<" + code)
        self._check_count(count, num_bytes)
        found = struct.unpack_from(f"<{count}{code}", self.view, self.at)
        self.at += count * num_bytes
        return found

    def _strings(self, count: int) -> list[str]:
        """Many strings, without a call for each: vocabularies have hundreds of thousands."""
        self._check_count(count, 8)
        view, at, have, length_at = self.view, self.at, self.have, _LENGTH.unpack_from
        found: list[str] = []
        for _ in range(count):
            if at + 8 > have:
                raise self._ends(at + 8, "the header ends in a list of texts")
            start = at + 8
            at = start + length_at(view, at)[0]
            if at > have:
                raise self._ends(at, "the header ends in a text")
            found.append(view[start:at].decode("utf-8"))
        self.at = at
        return found

    def _string(self) -> str:
        return self._strings(1)[0]

    def _u32(self) -> int:
        return int(self._numbers(_U32, 1)[0])

    def _u64(self) -> int:
        return int(self._numbers(_U64, 1)[0])

    def _check_count(self, count: int, least_bytes: int) -> None:
        """Refuses a count that the rest of the file cannot hold, before anything is made for it."""
        end = self.at + count * least_bytes
        if end > self.have:
            raise self._ends(end, "the header wants more bytes than the file has")

    def _ends(self, wanted: int, what: str) -> Exception:
        """For a read that goes to byte `wanted`: of the file, or behind its end."""
        return _MoreWanted(wanted) if wanted <= self.size else self._corrupt(what)

    def _corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: truncated or corrupt GGUF file: {what}; {get_again(self.file)}"
        )
