"""Small GGUF files, written by the `gguf` package's own writer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[npt.NDArray[Any], gguf.GGMLQuantizationType | None]],
    metadata: Mapping[str, Any] | None = None,
    architecture: str = "toy",
) -> Path:
    """tensors: name -> data and, for packed bytes, their type. metadata: numbers, texts, lists."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        _add(writer, key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextmanager
def read_once() -> Iterator[None]:
    """transformers reads a file anew for its config, tensors and tokenizer; here, once.

    And as a whole: of a mapped array each slice is slow, and a vocabulary has very many.
    """
    whole = {"memmap": lambda path, mode: np.fromfile(path, np.uint8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.gguf_reader, "np", SimpleNamespace(**{**vars(np), **whole}))
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def random_blocks(
    kind: gguf.GGMLQuantizationType, num_rows: int, num_blocks: int, seed: int
) -> npt.NDArray[np.uint8]:
    """[num_rows, bytes] of random packed numbers whose float16 scales are finite."""
    num_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(seed).integers(
        0, 256, (num_rows, num_blocks, num_bytes), dtype=np.uint8
    )
    for at in _SCALE_HIGH_BYTES[kind.name]:
        blocks[..., at] &= 0xBF  # an exponent below the largest is no infinity or NaN
    return blocks.reshape(num_rows, -1)


_SCALE_HIGH_BYTES = {
    "Q4_0": (1,),
    "Q4_1": (1, 3),
    "Q5_0": (1,),
    "Q5_1": (1, 3),
    "Q8_0": (1,),
    "Q4_K": (1, 3),
    "Q5_K": (1, 3),
    "Q6_K": (209,),
}
