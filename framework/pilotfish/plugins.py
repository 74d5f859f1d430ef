"""Discovery: finds plugins through entry points and makes a registry of what they register.

Knows: entry points, hooks, `PILOTFISH_PLUGINS`. Does not know: what a spec means or how it is
matched. Keeps nothing: every process, and every call, discovers for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from types import FunctionType
from typing import Any, TypeVar

import attrs
import pluggy

from pilotfish.errors import PluginConflictError, PluginError
from pilotfish.hookspecs import PilotfishHooks
from pilotfish.nearest import did_you_mean
from pilotfish.plugin_specs import (
    API_VERSION,
    ArchitectureSpec,
    Plugin,
    PluginFailure,
    SpeculatorSpec,
    of_other_api,
    plugin_label,
)
from pilotfish.registry import Registry

GROUP = "pilotfish"
"""The entry-point group; an entry is `plugin name = "import.light.module"`."""

LIMIT_VARIABLE = "PILOTFISH_PLUGINS"
"""Environment variable: plugin names to load, separated by commas; empty or unset loads all."""

HOOK_PREFIX = "pilotfish_"

Spec = TypeVar("Spec", ArchitectureSpec, SpeculatorSpec)


def load_registry(environ: Mapping[str, str] | None = None) -> Registry:
    """Loads the installed plugins and returns what they register.

    environ: where `PILOTFISH_PLUGINS` is looked up; None means `os.environ`.
    A plugin that cannot be loaded is recorded in `Registry.failures`; the others load. Raises
    PluginConflictError when two distributions claim one name, PluginError when
    `PILOTFISH_PLUGINS` names a plugin that is not installed.
    """
    installed = _installed()
    wanted = _wanted(os.environ if environ is None else environ, {one.name for one in installed})
    chosen = [one for one in installed if wanted is None or one.name in wanted]
    _check_names(chosen)
    plugins: list[Plugin] = []
    failures: list[PluginFailure] = []
    for one in chosen:
        try:
            plugins.append(_load(one))
        except (Exception, SystemExit) as error:
            failures.append(
                PluginFailure(
                    name=one.name,
                    distribution=one.distribution,
                    version=one.version,
                    error=_failure(one, error),
                )
            )
    return Registry(plugins=tuple(plugins), failures=tuple(failures), limited_to=wanted)


@attrs.frozen(order=True)
class _Installed:
    """An entry point, and which distribution has it; "" where none is known."""

    name: str
    distribution: str
    version: str
    entry: EntryPoint = attrs.field(order=False)


def _installed() -> list[_Installed]:
    """By name. A distribution's metadata, in which its README stands too, are read once."""
    sources: dict[int, tuple[str, str]] = {}
    found = []
    for entry in entry_points(group=GROUP):
        dist = entry.dist
        if dist is None:
            sources[id(dist)] = "", ""
        elif id(dist) not in sources:
            said = dist.metadata
            sources[id(dist)] = said["Name"] or "", said["Version"] or ""
        found.append(_Installed(entry.name, *sources[id(dist)], entry))
    return sorted(found)


def _wanted(environ: Mapping[str, str], installed: Iterable[str]) -> tuple[str, ...] | None:
    names = tuple(part.strip() for part in environ.get(LIMIT_VARIABLE, "").split(","))
    names = tuple(dict.fromkeys(name for name in names if name))
    installed = sorted(installed)
    for name in names:
        if name not in installed:
            raise PluginError(
                f"{LIMIT_VARIABLE} names {name!r}{did_you_mean(name, installed)}; "
                f"wanted names of installed plugins: {', '.join(installed) or 'none'}"
            )
    return names or None


def _check_names(chosen: Sequence[_Installed]) -> None:
    for first, second in pairwise(chosen):
        if first.name == second.name:
            claims = " and by ".join(f"{one.distribution} {one.version}" for one in (first, second))
            raise PluginConflictError(
                f"the plugin name {first.name!r} is claimed by {claims}: uninstall one"
            )


def _failure(plugin: _Installed, error: BaseException) -> PluginError:
    """The recorded error: which plugin failed and why, with the plugin's exception as cause."""
    said = str(error)
    if not isinstance(error, PluginError):
        said = f"{type(error).__name__}: {said}{of_other_api(error)}"
    label = plugin_label(plugin.name, plugin.distribution, plugin.version)
    failure = PluginError(f"plugin {label} failed to load: {said}")
    failure.__cause__ = error
    return failure


def _load(plugin: _Installed) -> Plugin:
    module = plugin.entry.load()
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(PilotfishHooks)
    _check_hooks(module, manager)
    return Plugin(
        name=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        architectures=_call(manager, "pilotfish_architectures", ArchitectureSpec),
        speculators=_call(manager, "pilotfish_speculators", SpeculatorSpec),
    )


def _check_hooks(module: Any, manager: pluggy.PluginManager) -> None:
    """Registers the module; raises PluginError for a misspelt, unmarked or missing hook."""
    hooks = [name for name in vars(PilotfishHooks) if name.startswith(HOOK_PREFIX)]
    manager.register(module)
    marked = {hook.name for hook in manager.get_hookcallers(module) or ()}
    for name in sorted(marked - set(hooks)):
        raise PluginError(
            f"it implements {name!r}, which is no hook{did_you_mean(name, hooks)}; "
            f"hooks: {', '.join(hooks)}"
        )
    for name, value in sorted(vars(module).items()):
        unmarked = isinstance(value, FunctionType) and name not in marked
        if unmarked and name.startswith(HOOK_PREFIX) and value.__module__ == module.__name__:
            raise PluginError(
                f"its function {name!r} is not marked @pilotfish.hookimpl"
                f"{did_you_mean(name, hooks) if name not in hooks else ''}; names that begin with "
                f"{HOOK_PREFIX} are kept for hooks"
            )
    if not marked:
        raise PluginError(f"it implements no hook; wanted one of: {', '.join(hooks)}")


def _call(manager: pluggy.PluginManager, hook: str, kind: type[Spec]) -> tuple[Spec, ...]:
    """Calls a hook of the one registered module; raises PluginError unless it returns specs."""
    specs: list[Spec] = []
    for answer in getattr(manager.hook, hook)():
        if not isinstance(answer, Sequence) or not all(isinstance(s, kind) for s in answer):
            raise PluginError(f"its {hook} returned {answer!r}; wanted a list of {kind.__name__}")
        specs.extend(answer)
    for spec in specs:
        if spec.api_version != API_VERSION:
            raise PluginError(
                f"it was written for plugin API {spec.api_version}; this Pilotfish has "
                f"{API_VERSION}: install a version of the plugin made for it"
            )
    return tuple(specs)
