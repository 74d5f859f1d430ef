"""Weights that are not there: a config alone, which can be planned and not run.

Knows: what stands for a checkpoint's tensors then. Does not know: where they were looked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError
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
        if shapes is not None:
            self._infos = {
                name: TensorInfo(shape, dtype, math.prod(shape) * FLOAT_BYTES[dtype])
                for name, shape in shapes.items()
            }

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """The parameters, as tensors that nobody changed."""
        if self._infos is None:
            raise self.error
        return self._infos

    def load(self, name: str) -> torch.Tensor:
        """Raises the error."""
        del name
        raise self.error
