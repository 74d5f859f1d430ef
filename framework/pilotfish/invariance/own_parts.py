"""own_parts: what of a decoder is not the library's as written, and whose word stands for it.

Knows: classes and their methods. Does not know: what any of them computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Protocol

import attrs

from pilotfish.layers.layer import Layer, Written
from pilotfish.layers.pass_plan import is_as_written

LIBRARY = "pilotfish."
_TO_BE_WRITTEN = ("build_network", "weight_rules")
"""What every plugin writes of a model: it makes the parts, and computes nothing in a pass."""


@attrs.frozen
class OwnPart:
    """name: of its class. keeps_bits, is_portable: whether its author says so: see `KeepsBits`."""

    name: str
    keeps_bits: bool
    is_portable: bool = False


class WithNetwork(Protocol):
    """A model whose layers are its network's."""

    @property
    def network(self) -> Layer:
        """The layer that holds all others."""
        ...


def own_parts(model: WithNetwork) -> list[OwnPart]:
    """The parts that are not the library's: the model, its network, layers, and what they hold."""
    parts: list[Any] = [model]
    for layer in model.network.layers_inside():
        parts.append(layer)
        parts += (value for value in _held(layer) if isinstance(value, Written))
    return list(dict.fromkeys(found for part in parts if (found := own_part(part))))


def functions_in_place(model: WithNetwork) -> list[str]:
    """Functions that stand where a layer would, as "Block.mlp": what they hold is not seen."""
    return sorted(
        {
            f"{type(layer).__qualname__}.{name}"
            for layer in model.network.layers_inside()
            for name, value in sorted(vars(layer).items())
            if isinstance(value, FunctionType | MethodType | partial)
        }
    )


def own_part(part: object) -> OwnPart | None:
    """What of a layer, model or routing is not the library's; None for nothing."""
    kinds = type(part).__mro__
    called = {name for kind in kinds if _is_librarys(kind) for name in vars(kind)}
    own = [kind for kind in kinds if not _is_librarys(kind) and _has_code(kind, called)]
    is_patched = not is_as_written(part, type(part)) or any(map(_is_own_function, _held(part)))
    if not own and not is_patched:
        return None
    says = [False] if is_patched or not own else [vars(kind).get("keeps_bits") for kind in own]
    return OwnPart(
        type(part).__qualname__,
        keeps_bits=all(says),
        is_portable=all(one == "portable" for one in says),
    )


def _is_librarys(kind: Any) -> bool:
    return kind is object or kind.__module__.startswith(LIBRARY)


def _has_code(kind: type, called: Set[str]) -> bool:
    """Whether a class has methods or properties that may compute; Layer's own load weights.

    called: names that the library may call. Another private name only serves those beside it.
    """
    return any(
        (callable(value) or hasattr(value, "__get__"))
        and (name == "__call__" or _is_called(name, called))
        and name not in _TO_BE_WRITTEN
        and name not in vars(Layer)
        for name, value in vars(kind).items()
        if not isinstance(value, type)
    )


def _is_called(name: str, called: Set[str]) -> bool:
    return not name.startswith("_") or (name in called and not name.startswith("__"))


def _held(part: object) -> Iterator[Any]:
    """The values of its attributes."""
    names = {*getattr(part, "__dict__", {})}
    names |= {field.name for field in getattr(part, "__attrs_attrs__", ())}
    return (getattr(part, name) for name in sorted(names))


def _is_own_function(value: Any) -> bool:
    """Whether it is a function from elsewhere: a scoring, or what stands for a method."""
    if not callable(value) or isinstance(value, Written | type):  # a part of its own
        return False
    return not str(getattr(value, "__module__", "")).startswith(LIBRARY)
