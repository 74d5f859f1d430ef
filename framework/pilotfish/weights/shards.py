"""Shards of a load plan: which can be read, and how many bytes that is; from headers alone.

Knows: plans, kinds of blocks and where pieces lie in a parameter. Does not know: formats, or who
holds what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from pilotfish.errors import PluginError
from pilotfish.weights.load_plan import LoadPiece, LoadPlan, LoadStep
from pilotfish.weights.source import TensorInfo
from pilotfish.weights.stored_rows import (
    PACKED_KINDS,
    block_columns,
    check_columns,
    held_rows,
    joined,
)

if TYPE_CHECKING:
    from pilotfish.parallel.shard import Shard


def check_shards(
    plan: LoadPlan,
    infos: Mapping[str, TensorInfo],
    shards: Mapping[str, Shard],
    keeps: Callable[[str], bool] | None = None,
) -> None:
    """Whether a load can hand over these shards, before anything is read.

    shards, keeps: as of `execute_load`. Every range of columns is checked, also of those that make
    the whole.

    Raises ConfigError for packed rows that stay as they lie and whose columns would be cut within a
    block; PluginError for shards of no parameter, past its end, or unlike a tied parameter's.
    """
    if not shards:
        return
    known: set[str] = set()
    for step in plan.steps:
        shard = shards.get(step.parameter)
        known |= {step.parameter, *step.tied}
        for name in step.tied:
            if shards.get(name) != shard:
                raise PluginError(
                    f"{name} shares the tensor of {step.parameter}; got {shards.get(name)} of it "
                    f"and {shard} of its owner, wanted one Shard for both"
                )
        if shard is not None:
            _check_shard(step, shard, infos, keeps)
    unknown = shards.keys() - known
    if unknown:
        raise PluginError(
            f"a Shard was given of {', '.join(sorted(unknown))}; wanted names of parameters"
        )


def _check_shard(
    step: LoadStep,
    shard: Shard,
    infos: Mapping[str, TensorInfo],
    keeps: Callable[[str], bool] | None,
) -> None:
    size = step.shape[shard.axis] if shard.axis < len(step.shape) else 0
    if any(one.start < 0 or one.stop > size for one in shard.ranges):
        raise PluginError(
            f"{step.parameter} is {list(step.shape)}; got {shard}, wanted ranges within it"
        )
    if shard.axis == 0 or not is_kept(step, infos, keeps):
        return
    for piece in step.pieces:
        kind = infos[piece.name].dtype
        if kind in PACKED_KINDS and keeps_rows(piece):
            check_columns(piece.name, kind, block_columns(kind), shard.ranges)


def bytes_read(plan: LoadPlan, infos: Mapping[str, TensorInfo], shards: Mapping[str, Shard]) -> int:
    """What a load with shards reads of the file; `plan.num_bytes` without any."""
    return sum(bytes_read_of(plan, infos, shards).values())


def bytes_read_of(
    plan: LoadPlan, infos: Mapping[str, TensorInfo], shards: Mapping[str, Shard]
) -> dict[str, int]:
    """As `bytes_read`, of each tensor of which anything is read.

    A tensor that a transform changes is read whole where any of it is held. Counted as cut are
    packed tensors of which some columns are held; a backend that unpacks them reads all.
    """
    found: dict[str, float] = {}
    for step in plan.steps:
        shard = cut_of(step, shards)
        for piece, rows in zip(step.pieces, held_of(step, shard), strict=True):
            if rows:
                part = _part_read(step, piece, shard, sum(len(one) for _, one in rows))
                found[piece.name] = min(1.0, found.get(piece.name, 0.0) + part)
    return {name: round(infos[name].num_bytes * part) for name, part in found.items()}


def _part_read(step: LoadStep, piece: LoadPiece, shard: Shard | None, num_rows: int) -> float:
    """What part of a piece's bytes is read, of which some rows are held."""
    if shard is None or not can_cut(step, piece):
        return 1.0
    if shard.axis:
        return sum(map(len, shard.ranges)) / step.shape[shard.axis]
    return 1.0 if step.combine == "stack" else num_rows / piece.shape[0]


def cut_of(step: LoadStep, shards: Mapping[str, Shard]) -> Shard | None:
    """What is held of a step's parameter, in as few ranges as may be; None: all of it."""
    shard = shards.get(step.parameter)
    if shard is None or shard.is_empty:
        return shard
    ranges = joined(shard.ranges)
    whole = ranges == [range(step.shape[shard.axis])]
    return None if whole else attrs.evolve(shard, ranges=ranges)


def held_of(step: LoadStep, shard: Shard | None) -> list[list[tuple[int, range]]]:
    """As `held_rows`, of a step's pieces; each is one row where they are stacked."""
    stacked = step.combine == "stack"
    lengths = [1 if stacked or not piece.shape else piece.shape[0] for piece in step.pieces]
    if shard is not None and (shard.axis == 0 or shard.is_empty):
        return held_rows(lengths, shard.ranges)
    return held_rows(lengths, [range(sum(lengths))])


def is_kept(
    step: LoadStep, infos: Mapping[str, TensorInfo], keeps: Callable[[str], bool] | None
) -> bool:
    """Whether a parameter is handed over as StoredRows: those that share it take them, and it is
    a matrix of floats that is made row by row.
    """
    if keeps is None or not all(map(keeps, (step.parameter, *step.tied))):
        return False
    kinds = (infos[piece.name].dtype for piece in step.pieces)
    return (
        step.combine == "rows"
        and step.dtype != "stored"
        and len(step.shape) == 2
        and all(kind in PACKED_KINDS or kind.startswith(("float", "bfloat")) for kind in kinds)
    )


def keeps_rows(piece: LoadPiece) -> bool:
    """Whether a piece's rows are the file's, in whatever order."""
    return piece.transform is None or piece.transform.row_parts is not None


def can_cut(step: LoadStep, piece: LoadPiece) -> bool:
    """Whether a part of a piece is had from a part of the file's tensor."""
    return piece.transform is None or (step.combine == "rows" and keeps_rows(piece))
