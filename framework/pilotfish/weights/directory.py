"""A directory's weights: which of its files they are in.

Knows: the names under which weights are published. Does not know: what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from pilotfish.weights.absent import NoWeightsError
from pilotfish.weights.formats import safetensors, torch_bin
from pilotfish.weights.hf_config import what_else_it_is
from pilotfish.weights.lfs import refuse_pointers
from pilotfish.weights.source import WeightSource

_OPENERS: dict[str, Callable[[Path], WeightSource]] = {
    safetensors.SINGLE_FILE: safetensors.SafetensorsSource.from_file,
    safetensors.INDEX_FILE: safetensors.SafetensorsSource.from_index,
    torch_bin.SINGLE_FILE: torch_bin.TorchBinSource.from_file,
    torch_bin.INDEX_FILE: torch_bin.TorchBinSource.from_index,
}
"""In order of preference."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_OTHERS = (".bin", ".pth", ".pt", ".gguf", ".safetensors")
_MOST_NAMED = 4
INDEX_FILES = (safetensors.INDEX_FILE, torch_bin.INDEX_FILE)


def main_file(names: Collection[str]) -> str | None:
    """Which of a directory's files the weights are found by; None where there are no weights."""
    return next((name for name in _OPENERS if name in names), None)


def why_no_weights(path: Path, names: Collection[str]) -> str:
    """What is wanted, and what these files are, of which the small ones are in `path`."""
    wanted = f"wanted one of {', '.join(_OPENERS)}"
    shards = sorted(name for name in names if _SHARD.search(name))
    if shards:
        indexes = " or ".join(INDEX_FILES)
        return (
            f"{wanted}; it has {len(shards)} shards ({', '.join(shards[:_MOST_NAMED])}) without "
            f"the index that says which tensor is where: get {indexes} too"
        )
    others = sorted(name for name in names if name.endswith(_OTHERS))
    return wanted + (
        what_else_it_is(path) or (f"; it has {', '.join(others[:_MOST_NAMED])}" if others else "")
    )


def open_directory(path: Path) -> WeightSource:
    """The tensors; only headers are read. Raises CheckpointError naming what is wrong."""
    refuse_pointers(path)
    names = [file.name for file in path.iterdir() if file.is_file()]
    name = main_file(names)
    if name is None:
        raise NoWeightsError(f"{path}: no weights; {why_no_weights(path, names)}")
    return _OPENERS[name](path / name)
