"""Strict loading: a plan that accounts for every tensor and every parameter, then its execution.

Knows: rules, names and shapes; one tensor at a time. Does not know: file formats or architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from pilotfish.errors import WeightsError
from pilotfish.weights.deferred import DeferredTensor
from pilotfish.weights.misfits import Misfits
from pilotfish.weights.names import TemplateTable, fill, shortened
from pilotfish.weights.rules import Combine, Rule, Shape, Transform, WeightRules
from pilotfish.weights.source import TensorInfo, WeightSource
from pilotfish.weights.stored_rows import PACKED_KINDS, PackedSource, StoredRows, stays_stored

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear.weight import PackedRows

_Value: TypeAlias = Any
"""A tensor, a DeferredTensor or StoredRows: what a parameter is filled with."""


@attrs.frozen(kw_only=True)
class LoadPiece:
    """name: of the tensor in the file. shape: after the transform, without a stacking axis."""

    name: str
    shape: Shape
    transform: Transform | None = None


@attrs.frozen(kw_only=True)
class LoadStep:
    """One parameter, the tensors that fill it, and the parameters that share the result."""

    parameter: str
    shape: Shape
    pieces: tuple[LoadPiece, ...]
    combine: Combine = "rows"
    dtype: str | None = None
    tied: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class LoadPlan:
    """What will be read, in the order of the file; made by `plan_load`, so nothing is left over.

    ignored: tensors of the file that a listed rule lets lie.
    num_bytes: what the tensors to be read take on disk.
    """

    steps: tuple[LoadStep, ...]
    ignored: tuple[str, ...] = ()
    num_bytes: int = 0

    @property
    def ties(self) -> dict[str, str]:
        """Parameter -> the parameter whose tensor it shares."""
        return {name: step.parameter for step in self.steps for name in step.tied}


def plan_load(
    rules: WeightRules,
    infos: Mapping[str, TensorInfo],
    parameter_shapes: Mapping[str, Shape],
) -> LoadPlan:
    """Decides for every parameter which tensors fill it; reads nothing and needs no torch.

    rules: the architecture's name map. infos: the file's tensors, from its headers.
    parameter_shapes: every parameter of the model with its shape; a rule for a parameter that is
        not among them stays unused, and the tensors it would have read count as extra.

    Raises WeightsError naming every parameter that nothing fills, every tensor that nothing uses
    and every tensor whose shape does not fit; of many that differ in numbers alone, two.
    """
    return _Planner(rules, infos, parameter_shapes).plan()


def without_ignored(
    rules: WeightRules,
    infos: Mapping[str, TensorInfo],
    parameter_shapes: Mapping[str, Shape],
) -> dict[str, TensorInfo]:
    """The tensors that a load reads, or refuses: all but those that `rules.ignore` lets lie."""
    ignored = TemplateTable((rules.plain_name(name), name) for name in rules.ignore)
    read = _plain_names_read(rules, parameter_shapes)
    plain = {name: rules.plain_name(name) for name in infos}
    return {
        name: info
        for name, info in infos.items()
        if plain[name] in read or not ignored.find(plain[name])
    }


def tensors_read(
    rules: WeightRules, infos: Mapping[str, TensorInfo], parameters: Iterable[str]
) -> frozenset[str]:
    """Names of the tensors that some of the parameters are filled from."""
    read = _plain_names_read(rules, parameters)
    return frozenset(name for name in infos if rules.plain_name(name) in read)


def _plain_names_read(rules: WeightRules, parameters: Iterable[str]) -> set[str]:
    table = TemplateTable((rule.parameter, rule) for rule in rules.rules)
    return {
        rules.plain_name(fill(piece.name, numbers))
        for parameter in parameters
        for rule, numbers in table.find(parameter)
        for piece in rule.pieces
    }


class _Planner:
    """Collects steps and everything that is wrong, so that one error can name it all."""

    def __init__(
        self,
        rules: WeightRules,
        infos: Mapping[str, TensorInfo],
        parameter_shapes: Mapping[str, Shape],
    ) -> None:
        self.rules = rules
        self.infos = infos
        self.parameter_shapes = parameter_shapes
        self.misfits = Misfits()
        self.used: set[str] = set()
        self.file_names: dict[str, str] = {}
        for name in infos:
            plain = rules.plain_name(name)
            if plain in self.file_names:
                said = f"{name} (the file also has {self.file_names[plain]})"
                self.misfits.extra[said] = name
                self.used.add(name)
                continue
            self.file_names[plain] = name

    def plan(self) -> LoadPlan:
        table = TemplateTable((rule.parameter, rule) for rule in self.rules.rules)
        steps: dict[str, LoadStep] = {}
        tied: dict[str, list[str]] = {}
        for parameter, shape in self.parameter_shapes.items():
            rule, names, present = self._choose(table, parameter)
            owner = self.rules.ties.get(parameter)
            if present == 0 and owner in self.parameter_shapes:
                assert owner is not None
                self._tie(parameter, shape, owner, tied)
            elif rule is None:
                self.misfits.missing.append(f"{parameter} (no rule of the architecture fits)")
            else:
                step = self._step(parameter, shape, rule, names)
                if step is not None:
                    steps[parameter] = step
        self._check_owners(steps, tied)
        ignored = self._account_for_rest()
        self.misfits.refuse()
        return self._finish(steps, tied, ignored)

    def _choose(
        self, table: TemplateTable[Rule], parameter: str
    ) -> tuple[Rule | None, list[str], int]:
        """The first rule with all tensors in the file, else the one with the most of them."""
        best: Rule | None = None
        best_names: list[str] = []
        most = -1
        for rule, numbers in table.find(parameter):
            names = [self.rules.plain_name(fill(piece.name, numbers)) for piece in rule.pieces]
            present = sum(name in self.file_names for name in names)
            if present == len(names):
                return rule, names, present
            if present > most:
                best, best_names, most = rule, names, present
        return best, best_names, max(most, 0)

    def _tie(self, parameter: str, shape: Shape, owner: str, tied: dict[str, list[str]]) -> None:
        owner_shape = self.parameter_shapes[owner]
        if tuple(owner_shape) != tuple(shape):
            self.misfits.misshapen.append(
                f"{parameter}: tied to {owner}, got {list(owner_shape)}, wanted {list(shape)}"
            )
        tied.setdefault(owner, []).append(parameter)

    def _check_owners(self, steps: Mapping[str, LoadStep], tied: Mapping[str, list[str]]) -> None:
        for owner, names in tied.items():
            if owner not in steps:
                self.misfits.missing.extend(
                    f"{name} (tied to {owner}, which no tensor fills)" for name in names
                )

    def _step(self, parameter: str, shape: Shape, rule: Rule, names: list[str]) -> LoadStep | None:
        pieces: list[LoadPiece] = []
        misfits: list[str] = []
        for piece, name in zip(rule.pieces, names, strict=True):
            file_name = self.file_names.get(name)
            if file_name is None:
                self.misfits.missing.append(
                    name if name == parameter else f"{name} (for {parameter})"
                )
                continue
            self.used.add(file_name)
            got = tuple(self.infos[file_name].shape)
            kind = self.infos[file_name].dtype
            is_whole = kind.startswith(("int", "uint")) and file_name.endswith(".weight")
            if is_whole and len(got) > 1:
                self.misfits.whole_numbers.append(f"{file_name} {kind} {list(got)}")
            try:
                after = got if piece.transform is None else piece.transform.shape(got)
            except ValueError as error:
                misfits.append(f"{file_name}: got {list(got)}, {error}")
                continue
            if piece.rows is not None and (not after or after[0] != piece.rows):
                misfits.append(
                    f"{file_name}: got {list(after)}, wanted {[piece.rows, *shape[1:]]} "
                    f"as a part of {parameter}"
                )
            pieces.append(LoadPiece(name=file_name, shape=after, transform=piece.transform))
        complete = len(pieces) == len(names)
        if complete and not misfits and _combined_shape(pieces, rule.combine) != tuple(shape):
            got_text = " + ".join(f"{piece.name} {list(piece.shape)}" for piece in pieces)
            misfits.append(f"{parameter}: got {got_text}, wanted {list(shape)}")
        self.misfits.misshapen.extend(misfits)
        if misfits or not complete:
            return None
        return LoadStep(
            parameter=parameter,
            shape=tuple(shape),
            pieces=tuple(pieces),
            combine=rule.combine,
            dtype=rule.dtype,
        )

    def _account_for_rest(self) -> tuple[str, ...]:
        table = TemplateTable((self.rules.plain_name(name), name) for name in self.rules.ignore)
        ignored: list[str] = []
        for plain, name in self.file_names.items():
            if name in self.used:
                continue
            if table.find(plain):
                ignored.append(name)
            else:
                self.misfits.extra[f"{name} {list(self.infos[name].shape)}"] = name
        return tuple(ignored)

    def _finish(
        self, steps: dict[str, LoadStep], tied: dict[str, list[str]], ignored: tuple[str, ...]
    ) -> LoadPlan:
        order = {name: place for place, name in enumerate(self.infos)}
        shared = [
            attrs.evolve(step, tied=tuple(tied.get(name, ()))) for name, step in steps.items()
        ]
        shared.sort(key=lambda step: min((order[p.name] for p in step.pieces), default=0))
        read = {piece.name for step in shared for piece in step.pieces}
        return LoadPlan(
            steps=tuple(shared),
            ignored=ignored,
            num_bytes=sum(self.infos[name].num_bytes for name in read),
        )


def _combined_shape(pieces: list[LoadPiece], combine: Combine) -> Shape | None:
    """The shape of the pieces together; None when they do not fit one another."""
    shapes = [piece.shape for piece in pieces]
    if combine == "stack":
        return (len(shapes), *shapes[0]) if len(set(shapes)) == 1 else None
    if len(shapes) == 1:
        return shapes[0]
    if any(not shape for shape in shapes) or len({shape[1:] for shape in shapes}) != 1:
        return None
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _none(parameter: str) -> bool:
    del parameter
    return False


def execute_load(
    plan: LoadPlan,
    source: WeightSource,
    assign: Callable[[str, torch.Tensor | DeferredTensor | StoredRows], None],
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    defers: Callable[[str], bool] = _none,
    keeps: Callable[[str], bool] = _none,
) -> None:
    """Reads the tensors one at a time and hands over whole parameters.

    assign: called once for each parameter, with a contiguous tensor that is the caller's own, of
        `dtype` (or the rule's dtype, or the file's for integers and bools) on `device`. The loader
        keeps nothing, so a layer may pack the tensor and drop it. A tied parameter gets the very
        tensor of its owner, right after it.
    defers: whether a parameter may be handed over as a DeferredTensor, to be read when it is first
        needed. It is where the source maps its file, memory is the CPU's and nothing shares it;
        every tensor is mapped before this returns, so that the file may then be replaced.
    keeps: whether a parameter may be handed over as StoredRows, used where and as it lies; those
        that share it must all. It is where its tensors are matrices of kinds that rows are
        multiplied with (see `stays_stored`); of several, those that are not are converted alone.
    """
    can_defer = source.is_mapped and str(device) == "cpu"
    for step in plan.steps:
        if all(map(keeps, (step.parameter, *step.tied))) and _may_stay(step, source.infos):
            _hand_over(step, _stored_rows(step, source, dtype), assign)
            continue
        if can_defer and not step.tied and defers(step.parameter):
            mapped = {piece.name: source.load(piece.name) for piece in step.pieces}
            read = partial(_read_step, step, mapped.__getitem__, dtype, device)
            assign(step.parameter, DeferredTensor(step.shape, read))
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
    transform, info = piece.transform, source.infos[piece.name]
    if transform is not None and transform.row_parts is None:
        return [_float_rows(transform.apply(source.load(piece.name)), info, dtype)]
    whole = source.load_packed(piece.name) if isinstance(source, PackedSource) else None
    if whole is None:
        whole = _float_rows(source.load(piece.name), info, dtype)
    if transform is None or transform.row_parts is None:
        return [whole]
    return [attrs.evolve(whole, blocks=rows) for rows in transform.row_parts(whole.blocks)]


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
        return _read_piece(step.pieces[0], load, wanted, device)
    whole: torch.Tensor | None = None
    start = 0
    for piece in step.pieces:
        raw = load(piece.name)
        part = raw if piece.transform is None else piece.transform.apply(raw)
        del raw
        if whole is None:
            kind = wanted if wanted and part.dtype.is_floating_point else part.dtype
            whole = torch.empty(step.shape, dtype=kind, device=device)
        rows = 1 if step.combine == "stack" else piece.shape[0]
        place = whole[start] if step.combine == "stack" else whole[start : start + rows]
        assert place.shape == part.shape, (piece.name, place.shape, part.shape)
        place.copy_(part)
        del part
        start += rows
    assert whole is not None, step.parameter
    return whole


def _wanted_dtype(step: LoadStep, dtype: torch.dtype) -> torch.dtype | None:
    """Of a parameter's floating tensors; None: as stored."""
    import torch

    if step.dtype == "stored":
        return None
    return getattr(torch, step.dtype) if step.dtype else dtype


def _read_piece(
    piece: LoadPiece,
    load: Callable[[str], torch.Tensor],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> torch.Tensor:
    raw = load(piece.name)
    tensor = raw if piece.transform is None else piece.transform.apply(raw)
    kind = dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype
    return tensor.to(device=device, dtype=kind).contiguous()
