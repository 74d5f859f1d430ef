"""Which classes a run takes: from what the user named as method and draft.

Knows: what a user may write for either. Does not know: any architecture, or how it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import attrs

from pilotfish.config import ModelConfig, SpeculativeConfig
from pilotfish.errors import ConfigError
from pilotfish.nearest import did_you_mean
from pilotfish.registry import Registry, Route
from pilotfish.weights import Checkpoint


def read_speculative(given: object) -> SpeculativeConfig | None:
    """The options of `speculative=`. Raises ConfigError for what is none."""
    if isinstance(given, str):
        return SpeculativeConfig(method=given)
    if given is None or isinstance(given, SpeculativeConfig):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"speculative is {given!r}; wanted None, the name of a method, or a SpeculativeConfig"
        )
    known = [field.name for field in attrs.fields(SpeculativeConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"speculative has no option {name!r}{did_you_mean(str(name), known)}; there are "
                f"{', '.join(known)}"
            )
    if "method" not in given:
        raise ConfigError("speculative has no 'method'; wanted the name of one, such as 'ngram'")
    return SpeculativeConfig(**given)


def read_draft(given: object) -> str | None:
    """The name or path of `draft=`. Raises ConfigError for what is none."""
    if given is None:
        return None
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if isinstance(path, str) and path.strip():
        return path
    raise ConfigError(
        f"draft is {given!r}; wanted a checkpoint: a directory, a .gguf file or a hub id"
    )


def route_of(
    registry: Registry,
    model: ModelConfig,
    options: SpeculativeConfig | None,
    draft: Checkpoint | None,
) -> Route:
    """The classes that run the model with this method and draft.

    Raises RouteError, ConfigError where a draft is wanted and none was given.
    """
    method = None if options is None else options.method
    draft_architecture = None if draft is None else draft.model_config().architecture
    route = registry.route(model.architecture, method, draft_architecture)
    if route.needs_draft and draft is None:
        raise ConfigError(
            f"the method {method!r} needs a draft and none was given; wanted a checkpoint of "
            f"{_named(route.draft_architectures)}: give one: --draft, or draft= in Python"
        )
    return route


def _named(architectures: Sequence[str]) -> str:
    return "any architecture" if "*" in architectures else " or ".join(architectures)
