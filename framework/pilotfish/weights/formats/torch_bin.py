"""TorchBinSource: the tensors of `pytorch_model.bin` files, read without running pickled code.

Knows: torch.load with weights_only. Does not know: what the tensors are for.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError
from pilotfish.weights.anew import get_again
from pilotfish.weights.formats.safetensors import read_weight_map
from pilotfish.weights.lfs import refuse_pointers
from pilotfish.weights.source import TensorInfo, WeightSource

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "pytorch_model.bin"
INDEX_FILE = "pytorch_model.bin.index.json"


class TorchBinSource(WeightSource):
    """A WeightSource over torch files. The tensors are mapped from the file where it allows that.

    Raises CheckpointError naming the file when it is corrupt, or holds more than tensors by name.
    is_torchs: as of a HubSource.
    """

    is_torchs = True

    def __init__(self, paths: list[Path]) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        for path in paths:
            for name, tensor in _read(path).items():
                if name in self._tensors:
                    raise CheckpointError(f"{path}: tensor {name} is also in another file")
                self._tensors[name] = tensor
        self._infos = {
            name: TensorInfo(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.nbytes)
            for name, t in self._tensors.items()
        }

    @classmethod
    def from_file(cls, path: str | Path) -> TorchBinSource:
        """One file."""
        return cls([Path(path)])

    @classmethod
    def from_index(cls, path: str | Path) -> TorchBinSource:
        """Every file named by an index. Raises CheckpointError naming missing files."""
        path = Path(path)
        return cls([path.parent / shard for shard in sorted(set(read_weight_map(path).values()))])

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the files."""
        return self._infos

    def load(self, name: str) -> torch.Tensor:
        """A copy of one tensor. Raises KeyError for an unknown name."""
        return self._tensors[name].clone()


def _read(path: Path) -> dict[str, torch.Tensor]:
    import torch

    refuse_pointers(path)
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old format, without a zip archive, cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not only tensors, or corrupt; pickled code is never run: convert it to "
            f"safetensors; or {get_again(path)}"
        ) from error
    except Exception as error:  # bytes that are none of its own make torch raise anything
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: truncated or corrupt torch file ({type(error).__name__}: {said:.160}); "
            f"{get_again(path)}"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{path}: wanted a dict of tensors by name: save a state_dict")
    return found
