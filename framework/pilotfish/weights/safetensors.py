"""SafetensorsSource: the tensors of one or several safetensors files.

Knows: the header of a safetensors file and the index of a sharded checkpoint. Does not know: what
the tensors are for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.errors import CheckpointError
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.source import TensorInfo
from pilotfish.weights.window import read_window

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The format's names -> torch's."""

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
    "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@attrs.frozen(kw_only=True)
class _Place:
    path: Path
    offset: int
    info: TensorInfo


class SafetensorsSource:
    """A WeightSource over safetensors files; reads the headers when made, tensors when asked.

    Raises CheckpointError naming the file when a header or a length is wrong.
    """

    is_mapped = True

    def __init__(self, places: Mapping[str, _Place]) -> None:
        self._places = dict(places)
        self._infos = {name: place.info for name, place in self._places.items()}

    @classmethod
    def from_file(cls, path: str | Path) -> SafetensorsSource:
        """One file."""
        return cls(_read_header(Path(path)))

    @classmethod
    def from_index(cls, path: str | Path) -> SafetensorsSource:
        """Every shard named by an index.

        Raises CheckpointError naming all missing shards, or all tensors that the index names and
        their shard does not have. Tensors that only a shard knows are kept: strict loading must
        see them.
        """
        path = Path(path)
        weight_map = read_weight_map(path)
        places: dict[str, _Place] = {}
        absent: list[str] = []
        shards = {
            shard: _read_header(path.parent / shard) for shard in sorted(set(weight_map.values()))
        }
        for name, shard in weight_map.items():
            if name not in shards[shard]:
                absent.append(f"{name} (in {shard})")
        if absent:
            raise CheckpointError(
                f"{path}: the index names tensors that their file does not have: "
                f"{', '.join(absent)}; get the index and the files from one place"
            )
        for shard, header in shards.items():
            for name, place in header.items():
                if weight_map.get(name, shard) == shard:
                    places[name] = place
        return cls(places)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the files."""
        return self._infos

    def load(self, name: str) -> torch.Tensor:
        """One tensor, mapped; writing to it leaves the file as it is. Raises KeyError."""
        import torch

        place = self._places[name]
        data = read_window(place.path, place.offset, place.info.num_bytes)
        dtype: torch.dtype = getattr(torch, place.info.dtype)
        if place.offset % dtype.itemsize:  # the format allows it; kernels want whole words
            data = data.clone()
        return data.view(dtype).view(place.info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index, every file present. Raises CheckpointError."""
    weight_map = read_json_object(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointError(f"{path}: no weight_map; wanted tensor names with their files")
    missing = sorted({s for s in weight_map.values() if not (path.parent / s).is_file()})
    if missing:
        raise CheckpointError(
            f"{path.parent}: the index names files that are not there: {', '.join(missing)}; "
            "download the whole checkpoint"
        )
    return weight_map


def _read_header(path: Path) -> dict[str, _Place]:
    """Every tensor of a file with its place, in the order of the bytes."""
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            head = file.read(8)
            header_bytes = int.from_bytes(head, "little")
            if len(head) < 8 or header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
                raise _corrupt(path, f"a header that does not fit {file_bytes} bytes")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _corrupt(path, "a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "a header that is not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    places = {name: _place_of(path, name, entry, start) for name, entry in header.items()}
    places = dict(sorted(places.items(), key=lambda item: (item[1].offset, item[1].info.num_bytes)))
    end = start
    for name, place in places.items():
        if place.offset != end:
            raise _corrupt(path, f"a gap or an overlap before {name}")
        end += place.info.num_bytes
    if end != file_bytes:
        raise _corrupt(path, f"{file_bytes} bytes where the header wants {end}")
    return places


def _place_of(path: Path, name: str, entry: Any, start: int) -> _Place:
    try:
        kind, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        wanted = math.prod(shape) * _ITEM_BYTES.get(kind, 1)
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"a bad entry for {name}") from error
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has the type {kind!r}; read: {', '.join(DTYPES)}"
        )
    if not sound or end - begin != wanted:
        raise _corrupt(path, f"{end - begin} bytes for {name}, {kind} {list(shape)}")
    info = TensorInfo(shape, DTYPES[kind], end - begin)
    return _Place(path=path, offset=start + begin, info=info)


def _corrupt(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: truncated or corrupt safetensors file: {what}; get it again")
