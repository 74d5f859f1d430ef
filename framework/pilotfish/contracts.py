"""Contracts: what a plugin's classes and objects must have, said in one line where they do not.

Knows: protocols, and how their members are listed. Does not know: what any of them does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from pilotfish.errors import PluginError
from pilotfish.nearest import did_you_mean
from pilotfish.protocols import ArchConfig, PipelineModel


def methods_of(contract: type) -> tuple[str, ...]:
    """The public methods of a protocol, class methods among them; no properties."""
    return tuple(
        name
        for kind in reversed(contract.__mro__)
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, classmethod))
    )


def attributes_of(contract: type) -> tuple[str, ...]:
    """The public attributes of a protocol that an object of it has."""
    return tuple(name for name in inspect.get_annotations(contract) if not name.startswith("_"))


def check_methods(kind: object, contract: type, what: str, optional: Iterable[str] = ()) -> None:
    """Raises PluginError naming methods of a protocol that a class, or an object, does not have.

    what: it is, and whose, for the message. optional: what may be missing.
    """
    names = [name for name in methods_of(contract) if name not in set(optional)]
    missing = [name for name in names if not callable(getattr(kind, name, None))]
    _refuse(kind, missing, contract, what)


def check_target(architecture: str, config: type, model: type) -> None:
    """Raises PluginError naming what the classes of an architecture do not have."""
    check_methods(config, ArchConfig, f"the config of {architecture}")
    # Only a model with slots is asked for a cache.
    check_methods(model, PipelineModel, f"the model of {architecture}", optional=["make_cache"])


def check_attributes(holder: object, contract: type, what: str) -> None:
    """Raises PluginError naming attributes of a protocol that an object does not have."""
    missing = [name for name in attributes_of(contract) if not hasattr(holder, name)]
    _refuse(holder, missing, contract, what)


def _refuse(holder: object, missing: list[str], contract: type, what: str) -> None:
    if not missing:
        return
    kind = holder if isinstance(holder, type) else type(holder)
    hint = did_you_mean(missing[0], [name for name in dir(kind) if not name.startswith("_")])
    raise PluginError(
        f"{what} is {kind.__module__}.{kind.__qualname__}, which has no {', '.join(missing)}; "
        f"wanted all that {contract.__module__}.{contract.__qualname__} says{hint}"
    )
