"""What a checkpoint's tensors take in memory, by the form they have there; from headers alone.

Knows: what is converted and what stays as it is. Does not know: layers, or the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pilotfish.weights.int4 import PACKED, SCALE
from pilotfish.weights.source import TensorInfo
from pilotfish.weights.stored_rows import FLOAT_BYTES


def weight_kinds(
    infos: Mapping[str, TensorInfo], dtype: str, stays: Callable[[str], bool] = lambda _: False
) -> dict[str, int]:
    """Bytes of each form, the most first: "q4_1", "int4", "float32" and the like.

    dtype: the run's, which all is converted to but whole numbers, INT4 weights with their scales,
    and the tensors whose names `stays` says yes to.
    """
    found: dict[str, int] = {}
    for name, info in infos.items():
        kind, num_bytes = dtype, math.prod(info.shape) * FLOAT_BYTES[dtype]
        base, _, ending = name.rpartition(".")
        is_scale = ending == SCALE and f"{base}.{PACKED}" in infos
        if stays(name) or is_scale or info.dtype.startswith(("int", "uint", "bool")):
            kind, num_bytes = info.dtype.lower(), info.num_bytes
        if name.endswith(f".{PACKED}"):
            kind = "int4"
        found[kind] = found.get(kind, 0) + num_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))
