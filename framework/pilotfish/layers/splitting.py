"""Whether ranks may split a layer as the library's classes say it.

Knows: classes and their methods. Does not know: shards.
"""

from __future__ import annotations

from collections.abc import Mapping

from pilotfish.errors import ConfigError
from pilotfish.layers.layer import Layer
from pilotfish.layers.pass_plan import replaced
from pilotfish.parallel.group import Group


def is_plain(layer: object, kind: type[Layer]) -> bool:
    """Whether a layer is of this very class, and computes as that was written."""
    return type(layer) is kind and not replaced(layer, kind)


def why_whole(layer: Layer, kind: type[Layer], parts: Mapping[str, type[Layer]]) -> str:
    """What of a layer computes in a way of its own, so that nobody knows how to split it; "" for
    nothing.

    kind: the class that says how. parts: attributes of it that must be as they were written; one
    that is None or missing is.
    """
    own = replaced(layer, kind)
    if own:
        return f"it has {', '.join(f'`{one}`' for one in own)} of its own"
    for name, of in parts.items():
        part = getattr(layer, name, None)
        if part is not None and not is_plain(part, of):
            return f"its `{name}` is {type(part).__name__}, not the library's {of.__name__}"
    return ""


def may_split(
    layer: Layer, kind: type[Layer], parts: Mapping[str, type[Layer]], group: Group, name: str
) -> bool:
    """Whether `shard` of `kind` goes on: False for a layer of its own way on one device.

    name: of the layer, for messages. Raises ConfigError for one on several.
    """
    why = why_whole(layer, kind, parts)
    if why and not group.is_alone:
        raise not_split(layer, name, why)
    return not why


def not_split(layer: Layer, name: str, why: str) -> ConfigError:
    """Of a layer that several ranks cannot share."""
    return ConfigError(
        f"{name.removesuffix('.')} ({type(layer).__name__}) cannot be split over ranks: {why}; "
        "wanted tensor_parallel=1, or a layer that says how (see docs/parallel.md)"
    )
