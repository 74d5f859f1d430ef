"""What a checkpoint's tensors take in memory, by the form they have there; from headers alone.

Knows: what is converted and what stays as it is, and which part of a tensor a rank holds. Does not
know: layers, or the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pilotfish.weights.int4 import PACKED, SCALE
from pilotfish.weights.load_plan import LoadPlan
from pilotfish.weights.shards import cut_of, held_of
from pilotfish.weights.source import TensorInfo
from pilotfish.weights.stored_rows import FLOAT_BYTES

if TYPE_CHECKING:
    from pilotfish.parallel.shard import Shard


def _never(name: str) -> bool:
    del name
    return False


def weight_kinds(
    infos: Mapping[str, TensorInfo],
    dtype: str,
    stays: Callable[[str], bool] = _never,
    parts: Mapping[str, float] = {},
) -> dict[str, int]:
    """Bytes of each form, the most first: "q4_1", "int4", "float32" and the like.

    dtype: the run's, which all is converted to but whole numbers, INT4 weights with their scales,
    and the tensors whose names `stays` says yes to. parts: which part of a tensor is held, 0 to 1;
    all of those that are not there.
    """
    found: dict[str, int] = {}
    for name in infos:
        kind, num_bytes = form_of(name, infos, dtype, stays)
        num_bytes = round(num_bytes * parts.get(name, 1.0))
        if num_bytes:
            found[kind] = found.get(kind, 0) + num_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def form_of(
    name: str,
    infos: Mapping[str, TensorInfo],
    dtype: str,
    stays: Callable[[str], bool] = _never,
) -> tuple[str, int]:
    """The form of a whole tensor in memory, and its bytes there; see `weight_kinds`."""
    info = infos[name]
    kind, num_bytes = dtype, math.prod(info.shape) * FLOAT_BYTES[dtype]
    base, _, ending = name.rpartition(".")
    is_scale = ending == SCALE and f"{base}.{PACKED}" in infos
    if stays(name) or is_scale or info.dtype.startswith(("int", "uint", "bool")):
        kind, num_bytes = info.dtype.lower(), info.num_bytes
    return "int4" if ending == PACKED else kind, num_bytes


def parts_held(plan: LoadPlan, shards: Mapping[str, Shard]) -> Iterator[tuple[str, str, float]]:
    """What a rank holds of each parameter: its name, a tensor that fills it, and which part of that
    tensor is held, 0 to 1.
    """
    for step in plan.steps:
        shard = cut_of(step, shards)
        for piece, rows in zip(step.pieces, held_of(step, shard), strict=True):
            if shard is None:
                part = 1.0
            elif shard.axis and not shard.is_empty:
                part = sum(map(len, shard.ranges)) / step.shape[shard.axis]
            else:
                num_rows = 1 if step.combine == "stack" or not piece.shape else piece.shape[0]
                part = sum(len(one) for _, one in rows) / num_rows
            yield step.parameter, piece.name, part
