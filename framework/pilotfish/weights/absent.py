"""Weights that are not there: a config alone, which can be planned and not run.

Knows: what stands for a checkpoint's tensors then. Does not know: where they were looked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError
from pilotfish.weights.int4 import PACKED, SHAPE
from pilotfish.weights.load_plan import LoadPiece, LoadPlan, LoadStep
from pilotfish.weights.source import TensorInfo, WeightSource
from pilotfish.weights.stored_rows import FLOAT_BYTES

if TYPE_CHECKING:
    import torch


class NoWeightsError(CheckpointError):
    """A checkpoint whose config is there and whose weights are not; says what is there instead."""


class AbsentWeights(WeightSource):
    """A WeightSource without tensors. error: why there are none.

    shapes, dtype: of the parameters that a config asks for, which then stand for the tensors;
    without them `infos` raises the error, as `load` always does.
    """

    def __init__(
        self,
        error: NoWeightsError,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        dtype: str = "float32",
    ) -> None:
        self.error = error
        self._infos: dict[str, TensorInfo] | None = None
        self._parameters: dict[str, str] = {}
        if shapes is not None:
            self._parameters = {_tensor_of(name, shapes): name for name in shapes}
            self._infos = {
                name: _info_of(name, shapes[parameter], dtype)
                for name, parameter in self._parameters.items()
            }

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """The parameters, as tensors that nobody changed."""
        if self._infos is None:
            raise self.error
        return self._infos

    @property
    def plan(self) -> LoadPlan:
        """Every parameter is filled by the tensor that stands for it."""
        pieces = {
            parameter: LoadPiece(name=name, shape=self.infos[name].shape)
            for name, parameter in self._parameters.items()
        }
        return LoadPlan(
            steps=tuple(
                LoadStep(parameter=parameter, shape=piece.shape, pieces=(piece,))
                for parameter, piece in pieces.items()
            )
        )

    def load(self, name: str) -> torch.Tensor:
        """Raises the error."""
        del name
        raise self.error


def _tensor_of(parameter: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a checkpoint would call it, as far as `int4` reads it in the name."""
    stem, _, ending = parameter.rpartition("_")
    is_int4 = ending in ("packed", "scale", "shape") and f"{stem}_packed" in shapes
    return f"{stem}.weight_{ending}" if is_int4 else parameter


def _info_of(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    is_whole = name.endswith((f".{PACKED}", f".{SHAPE}"))
    dtype = "int32" if is_whole else dtype
    return TensorInfo(shape, dtype, math.prod(shape) * (4 if is_whole else FLOAT_BYTES[dtype]))
