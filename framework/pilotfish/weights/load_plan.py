"""The plan of a strict load: every tensor of the file and every parameter is accounted for.

Knows: rules, names and shapes. Does not know: file formats, architectures, or a tensor's content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from pilotfish.weights.misfits import Misfits
from pilotfish.weights.names import TemplateTable, fill
from pilotfish.weights.rules import Combine, Rule, Shape, Transform, WeightRules
from pilotfish.weights.source import TensorInfo


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


@attrs.define
class _Planner:
    """Collects steps and everything that is wrong, so that one error can name it all."""

    rules: WeightRules
    infos: Mapping[str, TensorInfo]
    parameter_shapes: Mapping[str, Shape]
    misfits: Misfits = attrs.field(factory=Misfits)
    used: set[str] = attrs.field(factory=set)
    file_names: dict[str, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for name in self.infos:
            plain = self.rules.plain_name(name)
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
            owner = self.rules.ties.get(parameter, "")
            if present == 0 and owner in self.parameter_shapes:
                self._tie(parameter, shape, owner, tied)
            elif rule is None:
                self.misfits.missing.append(f"{parameter} (no rule of the architecture fits)")
            else:
                step = self._step(parameter, shape, rule, names)
                if step is not None:
                    steps[parameter] = step
        self.misfits.missing += [
            f"{name} (tied to {owner}, which no tensor fills)"
            for owner, names in tied.items()
            for name in names
            if owner not in steps
        ]
        ignored = self._account_for_rest()
        self.misfits.refuse()
        return self._finish(steps, tied, ignored)

    def _choose(
        self, table: TemplateTable[Rule], parameter: str
    ) -> tuple[Rule | None, list[str], int]:
        """The first rule with all tensors in the file, else the one with the most of them."""
        found: list[tuple[Rule, list[str], int]] = []
        for rule, numbers in table.find(parameter):
            names = [self.rules.plain_name(fill(piece.name, numbers)) for piece in rule.pieces]
            present = sum(name in self.file_names for name in names)
            if present == len(names):
                return rule, names, present
            found.append((rule, names, present))
        return max(found, key=lambda one: one[2], default=(None, [], 0))

    def _tie(self, parameter: str, shape: Shape, owner: str, tied: dict[str, list[str]]) -> None:
        owner_shape = self.parameter_shapes[owner]
        if tuple(owner_shape) != tuple(shape):
            self.misfits.misshapen.append(
                f"{parameter}: tied to {owner}, got {list(owner_shape)}, wanted {list(shape)}"
            )
        tied.setdefault(owner, []).append(parameter)

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
