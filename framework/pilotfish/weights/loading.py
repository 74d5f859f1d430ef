"""A load plan carried out: one tensor at a time is read, and whole parameters are handed over.

Knows: the plan, and which forms of rows may stay as they lie. Does not know: file formats, or why a
parameter is filled so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from pilotfish.errors import PluginError, WeightsError
from pilotfish.weights.load_plan import LoadPiece, LoadPlan, LoadStep
from pilotfish.weights.names import shortened
from pilotfish.weights.source import TensorInfo, WeightSource
from pilotfish.weights.stored_rows import PACKED_KINDS, PackedSource, StoredRows, stays_stored

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows

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
) -> None:
    """Reads the tensors one at a time and hands over whole parameters.

    assign: called once for each parameter, with a contiguous tensor that is the caller's own, of
        `dtype` (or the rule's dtype, or the file's for integers and bools) on `device`. The loader
        keeps nothing, so a layer may pack the tensor and drop it. A tied parameter gets the very
        tensor of its owner, right after it.
    keeps: whether a parameter may be handed over as StoredRows, used where and as it lies; those
        that share it must all. None: none may. It is where its tensors are matrices of kinds that
        rows are multiplied with (see `stays_stored`); of several, those that are not are converted
        alone.
    """
    for step in plan.steps:
        names = (step.parameter, *step.tied)
        if keeps is not None and all(map(keeps, names)) and _may_stay(step, source.infos):
            _hand_over(step, _stored_rows(step, source, dtype), assign)
            continue
        tensor = _read_step(step, source.load, dtype, device)
        assert tuple(tensor.shape) == step.shape, (step.parameter, tensor.shape, step.shape)
        _hand_over(step, tensor, assign)
        del tensor  # or it would live beside the next one


def _hand_over(step: LoadStep, tensor: _Value, assign: Callable[[str, _Value], None]) -> None:
    """To the parameter and those that share it."""
    try:
        for name in (step.parameter, *step.tied):
            assign(name, tensor)
    except WeightsError as error:
        raise _named(error, step) from error


def _may_stay(step: LoadStep, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether the step makes a matrix of floats, row by row."""
    kinds = (infos[piece.name].dtype for piece in step.pieces)
    return (
        step.combine == "rows"
        and step.dtype != "stored"
        and len(step.shape) == 2
        and all(kind in PACKED_KINDS or kind.startswith(("float", "bfloat")) for kind in kinds)
    )


def _stored_rows(step: LoadStep, source: WeightSource, dtype: torch.dtype) -> StoredRows:
    wanted = _wanted_dtype(step, dtype)
    assert wanted is not None, step.parameter
    parts = [part for piece in step.pieces for part in _stored_parts(piece, source, wanted)]
    return StoredRows((step.shape[0], step.shape[1]), tuple(parts), dtype)


def _stored_parts(piece: LoadPiece, source: WeightSource, dtype: torch.dtype) -> list[PackedRows]:
    """One piece as it lies; unpacked where a transform changes more than the order of rows."""
    info = source.infos[piece.name]
    row_parts = None if piece.transform is None else piece.transform.row_parts
    if piece.transform is not None and row_parts is None:
        return [_float_rows(_transformed(piece, source.load), info, dtype)]
    whole = source.load_packed(piece.name) if isinstance(source, PackedSource) else None
    if whole is None:
        whole = _float_rows(source.load(piece.name), info, dtype)
    if row_parts is None:
        return [whole]
    return [attrs.evolve(whole, blocks=rows) for rows in row_parts(whole.blocks)]


def _float_rows(tensor: torch.Tensor, info: TensorInfo, dtype: torch.dtype) -> PackedRows:
    """tensor: [rows, K] of the file's floats, kept as they are where that is right."""
    from pilotfish.kernels.linear.weight import PackedRows

    stays = info.dtype not in PACKED_KINDS and stays_stored(info, _name_of(dtype))
    tensor = (tensor if stays else tensor.to(dtype)).contiguous()
    return PackedRows(blocks=tensor, kind=_name_of(tensor.dtype), in_features=tensor.shape[1])


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
    load: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    import torch

    wanted = _wanted_dtype(step, dtype)
    if len(step.pieces) == 1 and step.combine == "rows":
        part = _transformed(step.pieces[0], load)
        return part.to(device=device, dtype=_dtype_of(part, wanted)).contiguous()
    whole: torch.Tensor | None = None
    start = 0
    for piece in step.pieces:
        part = _transformed(piece, load)
        if whole is None:
            whole = torch.empty(step.shape, dtype=_dtype_of(part, wanted), device=device)
        rows = 1 if step.combine == "stack" else piece.shape[0]
        place = whole[start] if step.combine == "stack" else whole[start : start + rows]
        assert place.shape == part.shape, (piece.name, place.shape, part.shape)
        place.copy_(part)
        del part
        start += rows
    assert whole is not None, step.parameter
    return whole


def _transformed(piece: LoadPiece, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A tensor as its rule wants it. Raises PluginError where the transform's `shape` lies."""
    raw = load(piece.name)
    if piece.transform is None:
        return raw
    made = piece.transform.apply(raw)
    if tuple(made.shape) != tuple(piece.shape):
        raise PluginError(
            f"the Transform of {piece.name} made {list(made.shape)} of {list(raw.shape)}; wanted "
            f"{list(piece.shape)}, which its `shape` says: give a Transform that changes shapes a "
            "`shape` that does the same"
        )
    return made


def _wanted_dtype(step: LoadStep, dtype: torch.dtype) -> torch.dtype | None:
    """Of a parameter's floating tensors; None: as stored."""
    import torch

    if step.dtype == "stored":
        return None
    return getattr(torch, step.dtype) if step.dtype else dtype


def _dtype_of(tensor: torch.Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted and tensor.dtype.is_floating_point else tensor.dtype
