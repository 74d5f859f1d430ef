"""A load plan carried out: one tensor at a time is read, and parameters are handed over.

Knows: the plan, what is held of a parameter, and which rows stay as they lie. Does not know: file
formats, or why a parameter is filled so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from pilotfish.errors import PluginError, WeightsError
from pilotfish.weights.load_plan import LoadPiece, LoadPlan, LoadStep
from pilotfish.weights.names import shortened
from pilotfish.weights.rules import Shape
from pilotfish.weights.shards import check_shards, cut_of, held_of, is_kept, keeps_rows
from pilotfish.weights.source import WeightSource
from pilotfish.weights.stored_rows import (
    FLOAT_BYTES,
    PackedSource,
    StoredRows,
    cut_columns,
    cut_rows,
    numbers_of,
)

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows
    from pilotfish.parallel.shard import Shard

_Value: TypeAlias = Any
"""A tensor or StoredRows: what a parameter is filled with."""


def execute_load(
    plan: LoadPlan,
    source: WeightSource,
    assign: Callable[[str, torch.Tensor | StoredRows], None],
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    keeps: Callable[[str], bool] | None = None,
    shards: Mapping[str, Shard] = {},
) -> None:
    """Reads the tensors one at a time and hands over parameters.

    assign: called once for each parameter, with a contiguous tensor that is the caller's own, of
        `dtype` (or the rule's dtype, or the file's for integers and bools) on `device`. The loader
        keeps nothing, so a layer may pack the tensor and drop it. A tied parameter gets the very
        tensor of its owner, right after it.
    keeps: whether a parameter may be handed over as StoredRows, used where and as it lies; those
        that share it must all. None: none may. It is where its tensors are matrices of kinds that
        rows are multiplied with (see `stays_stored`); of several, those that are not are converted
        alone.
    shards: what is held of parameters that are not held whole. No more is read than that, where a
        tensor comes without a Transform or with `row_parts`, and `assign` gets that alone: of an
        empty Shard nothing is read, and it is not called.

    Raises as `check_shards`, before anything is read.
    """
    check_shards(plan, source.infos, shards, keeps)
    for step in plan.steps:
        shard = cut_of(step, shards)
        if shard is not None and shard.is_empty:
            continue
        held: _Value
        if is_kept(step, source.infos, keeps):
            held = _stored_rows(step, source, dtype, shard)
        else:
            held = _read_step(step, source, dtype, device, shard)
        wanted = step.shape if shard is None else shard.shape(step.shape)
        assert tuple(held.shape) == wanted, (step.parameter, held.shape, wanted)
        _hand_over(step, held, assign)
        del held  # or it would live beside the next one


def _hand_over(step: LoadStep, tensor: _Value, assign: Callable[[str, _Value], None]) -> None:
    """To the parameter and those that share it."""
    try:
        for name in (step.parameter, *step.tied):
            assign(name, tensor)
    except WeightsError as error:
        raise _named(error, step) from error


def _stored_rows(
    step: LoadStep, source: WeightSource, dtype: torch.dtype, shard: Shard | None
) -> StoredRows:
    wanted = _wanted_dtype(step, dtype)
    assert wanted is not None, step.parameter
    placed: list[tuple[int, PackedRows]] = []
    for piece, stretches in zip(step.pieces, held_of(step, shard), strict=True):
        parts = _file_rows(piece, source) if stretches else []
        if shard is not None and shard.axis == 1:
            parts = [cut_columns(part, shard.ranges, piece.name) for part in parts]
        for place, rows in stretches:
            some = [_as_stored(part, wanted) for part in cut_rows(parts, [rows])]
            placed += [(place, part if shard is None else _own(part)) for part in some]
    placed.sort(key=lambda one: one[0])
    num_rows, num_columns = step.shape if shard is None else shard.shape(step.shape)
    return StoredRows((num_rows, num_columns), tuple(part for _, part in placed), dtype)


def _file_rows(piece: LoadPiece, source: WeightSource) -> list[PackedRows]:
    """A piece's rows as they lie; unpacked where a transform changes more than their order."""
    if not keeps_rows(piece):
        return [_as_rows(_transformed(piece, source.load))]
    whole = source.load_packed(piece.name) if isinstance(source, PackedSource) else None
    if whole is None:
        whole = _as_rows(source.load(piece.name))
    if piece.transform is None or piece.transform.row_parts is None:
        return [whole]
    parts = piece.transform.row_parts(whole.blocks)
    raw = (len(whole.blocks), *piece.shape[1:])
    _check_made(piece, raw, (sum(map(len, parts)), *raw[1:]))
    return [attrs.evolve(whole, blocks=rows) for rows in parts]


def _as_rows(tensor: torch.Tensor) -> PackedRows:
    """tensor: [rows, ...] of plain numbers."""
    from pilotfish.kernels.linear.weight import PackedRows

    return PackedRows(tensor, _name_of(tensor.dtype), tensor.shape[-1])


def _as_stored(rows: PackedRows, dtype: torch.dtype) -> PackedRows:
    """Rows as they are multiplied: floats that are wider than the run's are converted."""
    blocks, kind = rows.blocks, rows.kind
    if blocks.is_floating_point() and not (
        0 < FLOAT_BYTES.get(kind, 0) <= FLOAT_BYTES[_name_of(dtype)]
    ):
        blocks, kind = blocks.to(dtype), _name_of(dtype)
    if blocks.stride(-1) != 1:
        blocks = blocks.contiguous()
    return attrs.evolve(rows, blocks=blocks, kind=kind)


def _own(rows: PackedRows) -> PackedRows:
    """The same without the rest of the memory that they were cut from, unless that is a file's."""
    storage = rows.blocks.untyped_storage()
    if not storage.resizable() or storage.nbytes() == rows.blocks.nbytes:
        return rows
    return attrs.evolve(rows, blocks=rows.blocks.clone())


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(error: WeightsError, step: LoadStep) -> WeightsError:
    """The error with the tensors' names in front, where it does not say them: layers know none."""
    names = [piece.name for piece in step.pieces]
    if any(name in str(error) for name in names):
        return error
    return WeightsError(f"{', '.join(shortened(names))}: {error}")


def _read_step(
    step: LoadStep,
    source: WeightSource,
    dtype: torch.dtype,
    device: torch.device | str,
    shard: Shard | None,
) -> torch.Tensor:
    import torch

    wanted = _wanted_dtype(step, dtype)
    if shard is None and len(step.pieces) == 1 and step.combine == "rows":
        part = _transformed(step.pieces[0], source.load)
        return part.to(device=device, dtype=_dtype_of(part, wanted)).contiguous()
    shape = step.shape if shard is None else shard.shape(step.shape)
    held: torch.Tensor | None = None
    for piece, stretches in zip(step.pieces, held_of(step, shard), strict=True):
        for start, part in _held_parts(step, piece, source, stretches, shard):
            if held is None:
                held = torch.empty(shape, dtype=_dtype_of(part, wanted), device=device)
            place = held[start : start + len(part)]
            assert place.shape == part.shape, (piece.name, place.shape, part.shape)
            place.copy_(part)
            del part  # or its tensor would live beside the next one
    assert held is not None, step.parameter
    return held


def _held_parts(
    step: LoadStep,
    piece: LoadPiece,
    source: WeightSource,
    stretches: list[tuple[int, range]],
    shard: Shard | None,
) -> list[tuple[int, torch.Tensor]]:
    """What is held of one piece: (the place of its first row, [rows, ...]) of each stretch."""
    if not stretches:
        return []
    if shard is None or step.combine == "stack":
        tensor = _transformed(piece, source.load)
        parts = [_as_rows(tensor[None] if step.combine == "stack" else tensor)]
    else:
        parts = _file_rows(piece, source)
    found: list[tuple[int, torch.Tensor]] = []
    for start, rows in stretches:
        place = start
        for part in cut_rows(parts, [rows]):
            numbers = numbers_of(part)
            found.append((place, shard.of(numbers) if shard and shard.axis else numbers))
            place += len(numbers)
    return found


def _transformed(piece: LoadPiece, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A tensor as its rule wants it. Raises PluginError where the transform's `shape` lies."""
    raw = load(piece.name)
    if piece.transform is None:
        return raw
    made = piece.transform.apply(raw)
    _check_made(piece, tuple(raw.shape), tuple(made.shape))
    return made


def _check_made(piece: LoadPiece, raw: Shape, made: Shape) -> None:
    if made != tuple(piece.shape):
        raise PluginError(
            f"the Transform of {piece.name} made {list(made)} of {list(raw)}; wanted "
            f"{list(piece.shape)}, which its `shape` says: give a Transform that changes shapes a "
            "`shape` that does the same"
        )


def _wanted_dtype(step: LoadStep, dtype: torch.dtype) -> torch.dtype | None:
    """Of a parameter's floating tensors; None: as stored."""
    import torch

    if step.dtype == "stored":
        return None
    return getattr(torch, step.dtype) if step.dtype else dtype


def _dtype_of(tensor: torch.Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted and tensor.dtype.is_floating_point else tensor.dtype
