"""INT4 tensors in a checkpoint (compressed-tensors, "pack-quantized"): found, and checked.

Knows: the three tensors that stand for one weight, and what they say of each other. Does not know:
what the weights are for, or how four bits become a number (`kernels.int4`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pilotfish.errors import WeightsError
from pilotfish.weights.source import TensorInfo, WeightSource

PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
GROUP_SIZE = 32
COLUMNS_PER_WORD = 8


def check_int4(source: WeightSource) -> None:
    """Whether every `weight_packed` and what stands beside it fit; reads no weight.

    Raises WeightsError naming the first tensor that does not. Headers are checked before the few
    numbers of each `weight_shape` are read; a checkpoint without packed tensors is left alone.
    """
    infos = source.infos
    packed = [name.removesuffix(f".{PACKED}") for name in infos if name.endswith(f".{PACKED}")]
    for name in packed:
        _check_headers(infos, name)
    for name in packed:
        _check_shape(source, name)


def num_parameters(infos: Mapping[str, TensorInfo]) -> int:
    """Numbers in all tensors; a word of an INT4 weight is eight, its scales and shape are none."""
    total = 0
    for name, info in infos.items():
        base, _, kind = name.rpartition(".")
        if f"{base}.{PACKED}" not in infos:
            total += math.prod(info.shape)
        elif kind == PACKED:
            total += math.prod(info.shape) * COLUMNS_PER_WORD
    return total


def _check_headers(infos: Mapping[str, TensorInfo], name: str) -> None:
    missing = [f"{name}.{kind}" for kind in (SCALE, SHAPE) if f"{name}.{kind}" not in infos]
    if missing:
        raise WeightsError(
            f"{name}.{PACKED} stands without {' and '.join(missing)}; wanted all three; "
            "check that no file is left out"
        )
    packed, scale = infos[f"{name}.{PACKED}"], infos[f"{name}.{SCALE}"]
    if packed.dtype != "int32" or len(packed.shape) != 2:
        raise WeightsError(
            f"{name}.{PACKED} is {packed.dtype} {list(packed.shape)}; wanted int32 [out, in/8]"
        )
    rows, columns = packed.shape[0], packed.shape[1] * COLUMNS_PER_WORD
    wanted = (rows, columns // GROUP_SIZE)
    if tuple(scale.shape) != wanted or columns % GROUP_SIZE:
        raise WeightsError(
            f"{name}.{SCALE} is {list(scale.shape)}; wanted {list(wanted)}: one scale for each "
            f"{GROUP_SIZE} of the {columns} columns that {PACKED} {list(packed.shape)} has; "
            "use a checkpoint that was quantized in groups of 32"
        )
    if not scale.dtype.startswith(("float", "bfloat")):
        raise WeightsError(f"{name}.{SCALE} is {scale.dtype}; wanted a floating type")


def _check_shape(source: WeightSource, name: str) -> None:
    rows, words = source.infos[f"{name}.{PACKED}"].shape
    wanted, info = [rows, words * COLUMNS_PER_WORD], source.infos[f"{name}.{SHAPE}"]
    got = source.load(f"{name}.{SHAPE}").tolist() if info.shape == (2,) else list(info.shape)
    if got != wanted:
        raise WeightsError(
            f"{name}.{SHAPE} says {got}; wanted {wanted}, since {PACKED} is {[rows, words]} words "
            f"of {COLUMNS_PER_WORD} columns; get the file again"
        )
