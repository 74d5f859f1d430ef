"""SafetensorsSource: the tensors of one or several safetensors files.

Knows: the header of a safetensors file and the index of a sharded checkpoint. Does not know: what
the tensors are for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.errors import CheckpointError
from pilotfish.weights.anew import get_again
from pilotfish.weights.formats.window import read_window
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.lfs import refuse_pointer
from pilotfish.weights.names import shortened
from pilotfish.weights.source import TensorInfo, WeightSource

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_KINDS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""The format's names -> torch's, and bytes of a number."""
DTYPES = {kind: dtype for kind, (dtype, _) in _KINDS.items()}
"""The format's names -> torch's."""
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@attrs.frozen(kw_only=True)
class Place:
    """One tensor of a file: at which byte of it, and what it is."""

    offset: int
    info: TensorInfo


class SafetensorsSource(WeightSource):
    """A WeightSource over safetensors files; reads the headers when made, tensors when asked.

    Raises CheckpointError naming the file when a header or a length is wrong.
    """

    def __init__(self, places: Mapping[str, tuple[Path, Place]]) -> None:
        self._places = dict(places)
        self._infos = {name: place.info for name, (_, place) in self._places.items()}

    @classmethod
    def from_file(cls, path: str | Path) -> SafetensorsSource:
        """One file."""
        path = Path(path)
        return cls({name: (path, place) for name, place in _read_header(path).items()})

    @classmethod
    def from_index(cls, path: str | Path) -> SafetensorsSource:
        """Every shard named by an index.

        Raises CheckpointError naming all missing shards, and as `joined`.
        """
        path = Path(path)
        weight_map = read_weight_map(path)
        shards = sorted(set(weight_map.values()))
        headers = {shard: _read_header(path.parent / shard) for shard in shards}
        return cls(
            {
                name: (path.parent / shard, place)
                for name, (shard, place) in joined(path, weight_map, headers).items()
            }
        )

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the files."""
        return self._infos

    def load(self, name: str) -> torch.Tensor:
        """One tensor, mapped or read; writing to it leaves the file as it is. Raises KeyError."""
        import torch

        path, place = self._places[name]
        data = read_window(path, place.offset, place.info.num_bytes)
        dtype: torch.dtype = getattr(torch, place.info.dtype)
        if place.offset % dtype.itemsize:  # the format allows it; kernels want whole words
            data = data.clone()
        return data.view(dtype).view(place.info.shape)


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index, every file present. Raises CheckpointError."""
    weight_map = weight_map_in(path)
    missing = sorted({s for s in weight_map.values() if not (path.parent / s).is_file()})
    if missing:
        raise CheckpointError(
            f"{path.parent}: the index names files that are not there: "
            f"{', '.join(shortened(missing))}; download the whole checkpoint"
        )
    return weight_map


def weight_map_in(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index, whether the files are there or not.

    Raises CheckpointError where it has none.
    """
    weight_map = read_json_object(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointError(f"{path}: no weight_map; wanted tensor names with their files")
    paths = {shard: PurePath(shard) for shard in weight_map.values()}
    elsewhere = sorted(
        repr(shard)
        for shard, file in paths.items()
        if file.is_absolute() or ".." in file.parts or not file.name
    )
    if elsewhere:
        raise CheckpointError(
            f"{path}: the weight_map names {', '.join(shortened(elsewhere))}; wanted names of "
            "files beside the index: nothing outside of a checkpoint's folder is read"
        )
    return weight_map


def joined(
    index: object, weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, Place]]
) -> dict[str, tuple[str, Place]]:
    """Every tensor of a sharded checkpoint -> its file's name, and its place there.

    Tensors that only a shard knows are kept: strict loading must see them. Raises CheckpointError
    for all tensors that the index names and their shard does not have.
    """
    absent = [
        f"{name} (in {shard})" for name, shard in weight_map.items() if name not in headers[shard]
    ]
    if absent:
        raise CheckpointError(
            f"{index}: the index names tensors that their file does not have: "
            f"{', '.join(absent)}; get the index and the files from one place"
        )
    return {
        name: (shard, place)
        for shard, header in headers.items()
        for name, place in header.items()
        if weight_map.get(name, shard) == shard
    }


def _read_header(path: Path) -> dict[str, Place]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            wanted = header_size(head)
            file_bytes = path.stat().st_size
            if wanted <= file_bytes:
                head += file.read(wanted - 8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_header(path, head, file_bytes)


def header_size(head: bytes) -> int:
    """Bytes of a file before its first tensor, from its first 8; no more than a header may have."""
    return 8 + min(int.from_bytes(head[:8], "little"), _MAX_HEADER_BYTES)


def parse_header(file: object, head: bytes, file_bytes: int) -> dict[str, Place]:
    """Every tensor of a file with its place, in the order of the bytes.

    file: a Path, or what stands for one on the hub. head: its first bytes, the header among them
    where it fits into the file. Raises CheckpointError naming the file.
    """
    header_bytes = int.from_bytes(head[:8], "little")
    if len(head) < 8 or header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
        refuse_pointer(file, head)
        raise _corrupt(file, f"a header that does not fit {file_bytes} bytes")
    try:
        header = json.loads(head[8 : 8 + header_bytes].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "a header that is not a JSON object")
    said = header.pop("__metadata__", {})
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise _corrupt(file, "__metadata__ that is no object of texts")
    start = 8 + header_bytes
    places = {name: _place_of(file, name, entry, start) for name, entry in header.items()}
    places = dict(sorted(places.items(), key=lambda item: (item[1].offset, item[1].info.num_bytes)))
    end = start
    for name, place in places.items():
        if place.offset != end:
            raise _corrupt(file, f"a gap or an overlap before {name}")
        end += place.info.num_bytes
    if end != file_bytes:
        raise _corrupt(file, f"{file_bytes} bytes where the header wants {end}")
    return places


def _place_of(file: object, name: str, entry: Any, start: int) -> Place:
    try:
        kind, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(file, f"a bad entry for {name}") from error
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise _corrupt(file, f"a shape or offsets of {name} that are no whole numbers")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(
            f"{file}: tensor {name} has the type {kind!r}; read: {', '.join(DTYPES)}"
        )
    dtype, item_bytes = _KINDS[kind]
    if end - begin != math.prod(shape) * item_bytes:
        raise _corrupt(file, f"{end - begin} bytes for {name}, {kind} {list(shape)}")
    return Place(offset=start + begin, info=TensorInfo(shape, dtype, end - begin))


def _corrupt(file: object, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: truncated or corrupt safetensors file: {what}; {get_again(file)}"
    )
