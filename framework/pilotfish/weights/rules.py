"""The rules by which an architecture's parameters are filled from a checkpoint's tensors.

Knows: how a plugin writes its name map down as data. Does not know: how tensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Combine = Literal["rows", "stack"]


@attrs.frozen
class Transform:
    """A change of one tensor on its way in.

    apply: the file's tensor -> the tensor the parameter wants; must not write into its argument.
    shape: the same for shapes, so that a plan can be checked before anything is read. It may raise
        ValueError when the shape does not fit, with the wanted shape in the message.
    row_parts: for a transform that does no more than choose and order whole rows (axis 0): views
        of the file's tensor whose rows, one after the other, are those of the result. Rows may
        then stay packed, and where they lie; without it a packed tensor is unpacked first.
    """

    apply: Callable[[torch.Tensor], torch.Tensor]
    shape: Callable[[Shape], Shape] = lambda shape: shape
    row_parts: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None


@attrs.frozen
class Piece:
    """One tensor of the file, as a part of a parameter.

    name: the tensor's name; `{layer}` and the like stand for a number, bound by the parameter.
    rows: rows that the piece must have after its transform; None takes what the file has.
    transform: applied to the tensor before it is put in place.
    """

    name: str
    rows: int | None = None
    transform: Transform | None = None


def _as_pieces(value: str | Piece | Iterable[str | Piece]) -> tuple[Piece, ...]:
    items = (value,) if isinstance(value, str | Piece) else value
    return tuple(Piece(item) if isinstance(item, str) else item for item in items)


@attrs.frozen
class Rule:
    """How one parameter (or one per layer) is filled.

    parameter: the model's name, with `{layer}` and the like for numbers.
    pieces: names or Pieces, in the order of their rows. Several make one fused parameter.
    combine: "rows" puts the pieces behind one another along axis 0; "stack" gives each its own
        index of a new axis 0.
    dtype: "float32" and the like keeps the parameter in that dtype whatever the run's; None casts
        floating tensors to the run's dtype; "stored" casts nothing. Integers and bools are never
        cast.

    Several rules may name one parameter: the first whose tensors are all in the file is used.
    """

    parameter: str
    pieces: tuple[Piece, ...] = attrs.field(converter=_as_pieces)
    combine: Combine = attrs.field(default="rows", kw_only=True)
    dtype: str | None = attrs.field(default=None, kw_only=True)


def _as_rules(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(value)


def _as_names(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class WeightRules:
    """Everything that decides how a file becomes an architecture's parameters.

    rules: one or more for each parameter.
    ignore: names of tensors that may be in the file and are not needed; `{layer}` as above.
    ties: parameter -> parameter whose tensor it shares when the file has no tensor of its own.
    prefixes: a beginning of a tensor's name -> what stands there in the rules. The longest that
        fits is replaced once, in the file's names and in the rules' alike.
    """

    rules: tuple[Rule, ...] = attrs.field(converter=_as_rules)
    ignore: tuple[str, ...] = attrs.field(default=(), converter=_as_names)
    ties: Mapping[str, str] = attrs.field(factory=dict)
    prefixes: Mapping[str, str] = attrs.field(factory=lambda: {"model.": ""})

    def plain_name(self, name: str) -> str:
        """The name with its prefix replaced."""
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            if name.startswith(prefix):
                return self.prefixes[prefix] + name.removeprefix(prefix)
        return name


def layer_rule(parameter: str, *pieces: str | tuple[str, int | None]) -> Rule:
    """A rule for each layer: `layers.{layer}.` stands before the parameter and the tensors' names.

    pieces: names, several of which are put side by side; one may come with the rows it must have.
    """
    named = [(piece, None) if isinstance(piece, str) else piece for piece in pieces]
    return Rule(
        f"layers.{{layer}}.{parameter}",
        [Piece(f"layers.{{layer}}.{name}", rows) for name, rows in named],
    )
