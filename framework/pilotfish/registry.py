"""The registry: data that routes a Hugging Face architecture and a speculative mode to plugins.

Knows: specs and how they are matched. Does not know: how plugins are found, or any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import attrs

from pilotfish.errors import PluginConflictError, RouteError
from pilotfish.nearest import did_you_mean, did_you_mean_model
from pilotfish.plugin_specs import (
    API_VERSION,
    ArchitectureSpec,
    Plugin,
    PluginFailure,
    SpeculatorSpec,
    resolve,
)

if TYPE_CHECKING:
    from pilotfish.protocols import ArchConfig, ImageProcessor, PipelineModel

__all__ = [
    "API_VERSION",
    "ArchitectureSpec",
    "Plugin",
    "PluginFailure",
    "Registry",
    "Route",
    "SpeculatorSpec",
]

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Route:
    """What serves one request for an architecture: a target and, if asked, a speculator.

    Made by `Registry.route`. The classes are imported when they are asked for, not before.
    """

    hf_architecture: str
    architecture: ArchitectureSpec
    plugin: Plugin
    speculator: SpeculatorSpec | None = None
    speculator_plugin: Plugin | None = None

    @property
    def needs_draft(self) -> bool:
        """Whether the method reads a draft checkpoint."""
        return self.speculator is not None and bool(self.speculator.draft_architectures)

    @property
    def draft_architectures(self) -> tuple[str, ...]:
        """What the method reads as a draft; "*" stands for any architecture that is served."""
        return () if self.speculator is None else self.speculator.draft_architectures

    def config_class(self) -> type[ArchConfig]:
        """The target's configuration class. Raises PluginError."""
        found: type[ArchConfig] = resolve(self.architecture.config, self.plugin)
        return found

    def model_class(self) -> type[PipelineModel]:
        """The target's model class. Raises PluginError."""
        found: type[PipelineModel] = resolve(self.architecture.model, self.plugin)
        return found

    def image_processor_class(self) -> type[ImageProcessor] | None:
        """The target's image processor class; None for text only. Raises PluginError."""
        reference = self.architecture.image_processor
        return None if reference is None else resolve(reference, self.plugin)

    def speculator_config_class(self) -> type[ArchConfig]:
        """The draft's configuration class. Raises RouteError when no method was asked."""
        spec, plugin = self._speculator()
        found: type[ArchConfig] = resolve(spec.config, plugin)
        return found

    def speculator_model_class(self) -> type[Any]:
        """The draft's model class. Raises RouteError when no method was asked."""
        spec, plugin = self._speculator()
        found: type[Any] = resolve(spec.model, plugin)
        return found

    def _speculator(self) -> tuple[SpeculatorSpec, Plugin]:
        if self.speculator is None or self.speculator_plugin is None:
            raise RouteError(
                f"the route of {self.hf_architecture} has no speculator: "
                "ask registry.route(architecture, method) for one"
            )
        return self.speculator, self.speculator_plugin


@attrs.frozen(kw_only=True)
class Registry:
    """The plugins that were loaded, and those that failed; never changed after it is made.

    limited_to: the names in `PILOTFISH_PLUGINS`, for messages; None when it is not set.
    Raises PluginConflictError when two specs claim one architecture, GGUF name or method.
    """

    plugins: tuple[Plugin, ...] = ()
    failures: tuple[PluginFailure, ...] = ()
    limited_to: tuple[str, ...] | None = None
    _targets: Mapping[str, tuple[ArchitectureSpec, Plugin]] = attrs.field(
        init=False, repr=False, eq=False
    )
    _gguf: Mapping[str, tuple[ArchitectureSpec, Plugin]] = attrs.field(
        init=False, repr=False, eq=False
    )

    def __attrs_post_init__(self) -> None:
        specs = [(spec, plugin) for plugin in self.plugins for spec in plugin.architectures]
        targets = _claim_once("architecture", ((n, (s, p)) for s, p in specs for n in s.names))
        gguf = _claim_once(
            "GGUF architecture", ((n, (s, p)) for s, p in specs for n in s.gguf_architectures)
        )
        _claim_once("method", self._method_claims())
        object.__setattr__(self, "_targets", targets)
        object.__setattr__(self, "_gguf", gguf)

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every Hugging Face architecture name that is served, sorted."""
        return tuple(sorted(self._targets))

    @property
    def methods(self) -> tuple[str, ...]:
        """Every speculation method that is offered, sorted."""
        return tuple(sorted({spec.method for spec, _ in self._speculators()}))

    def route(
        self,
        hf_architecture: str,
        speculative_mode: str | None = None,
        draft_architecture: str | None = None,
    ) -> Route:
        """Finds what serves an architecture, and the speculator that fits it.

        hf_architecture: as in the checkpoint's config, e.g. the first of `architectures`.
        speculative_mode: a method's name; None for plain decoding.
        draft_architecture: of the draft's checkpoint; None when it is not known yet, which is
            an error only if it leaves several speculators.

        A speculator made for exactly this target wins; otherwise target and speculator are
        composed if the target has the capabilities that the speculator needs. Raises RouteError
        saying what was asked, what fits, near names and which plugins failed, with their
        exceptions as its cause.
        """
        if hf_architecture not in self._targets:
            self._refuse(
                f"no plugin serves the architecture {hf_architecture!r}"
                f"{self._as_draft(hf_architecture)}"
                f"{did_you_mean_model(hf_architecture, self._targets)}",
                f"served: {_listed(self._targets)}; docs/write-a-plugin.md writes one, "
                "and `pilotfish plugins` lists plugins that failed to import",
            )
        spec, plugin = self._targets[hf_architecture]
        route = Route(hf_architecture=hf_architecture, architecture=spec, plugin=plugin)
        if speculative_mode is None:
            if draft_architecture is not None:
                self._refuse(
                    f"a draft {draft_architecture!r} was given without a method",
                    f"methods that read it: {_listed(self._methods_reading(draft_architecture))}",
                )
            return route
        speculator, owner = self._choose_speculator(route, speculative_mode, draft_architecture)
        return attrs.evolve(route, speculator=speculator, speculator_plugin=owner)

    def architecture_for_gguf(self, general_architecture: str) -> ArchitectureSpec:
        """The spec that `general.architecture` of a GGUF file means. Raises RouteError."""
        return self._of_gguf(general_architecture)[0]

    def gguf_config(
        self, general_architecture: str
    ) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """The plugin's function from GGUF metadata to a Hugging Face config. Raises RouteError."""
        spec, plugin = self._of_gguf(general_architecture)
        if spec.gguf_config is None:
            raise RouteError(
                f"plugin {plugin} claims the GGUF architecture {general_architecture!r} but has "
                "no gguf_config: use the safetensors checkpoint"
            )
        found: Callable[[Mapping[str, Any]], dict[str, Any]] = resolve(spec.gguf_config, plugin)
        return found

    def _of_gguf(self, name: str) -> tuple[ArchitectureSpec, Plugin]:
        if name not in self._gguf:
            self._refuse(
                f"no plugin reads a GGUF file of architecture {name!r}"
                f"{did_you_mean_model(name, self._gguf)}",
                f"read: {_listed(self._gguf)}",
            )
        return self._gguf[name]

    def _choose_speculator(
        self, route: Route, method: str, draft: str | None
    ) -> tuple[SpeculatorSpec, Plugin]:
        offers = [(spec, plugin) for spec, plugin in self._speculators() if spec.method == method]
        if not offers:
            self._refuse(
                f"no plugin offers the method {method!r}{did_you_mean(method, self.methods)}",
                f"methods that fit {route.hf_architecture}: {_listed(self._methods_for(route))}",
            )
        reading = [o for o in offers if draft is None or self._reads(o[0], draft)]
        if not reading:
            drafts = sorted({name for spec, _ in offers for name in spec.draft_architectures})
            others = self._methods_reading(draft or "")
            said = f"the method {method!r} does not read a draft {draft!r}"
            if others:
                self._refuse(
                    f"{said}; methods that read it: {_listed(others)}",
                    f"{method!r} reads: {_drafts_read(drafts)}",
                )
            self._refuse(
                f"{said}{did_you_mean_model(draft or '', drafts)}",
                f"it reads: {_drafts_read(drafts)}",
                f"methods that read {draft!r}: none",
            )
        fitting = [o for o in reading if route.hf_architecture in o[0].targets]
        fitting = fitting or [o for o in reading if _composes(o[0], route.architecture)]
        if not fitting:
            self._refuse(
                f"the method {method!r} does not fit {route.hf_architecture}: "
                f"{_misfits(reading, route.architecture)}",
                f"methods that fit it: {_listed(self._methods_for(route))}",
            )
        if len(fitting) > 1:
            drafts = sorted({name for spec, _ in fitting for name in spec.draft_architectures})
            self._refuse(
                f"the method {method!r} on {route.hf_architecture} depends on the draft",
                f"give a draft of one of: {_listed(drafts)}",
            )
        return fitting[0]

    def _speculators(self) -> Iterator[tuple[SpeculatorSpec, Plugin]]:
        for plugin in self.plugins:
            for spec in plugin.speculators:
                yield spec, plugin

    def _method_claims(self) -> Iterator[tuple[str, tuple[SpeculatorSpec, Plugin]]]:
        for spec, plugin in self._speculators():
            for target in spec.targets or ("any target",):
                for draft in spec.draft_architectures or ("no draft",):
                    yield f"{spec.method} of {draft} on {target}", (spec, plugin)

    def _methods_for(self, route: Route) -> list[str]:
        return sorted(
            {
                spec.method
                for spec, _ in self._speculators()
                if route.hf_architecture in spec.targets or _composes(spec, route.architecture)
            }
        )

    def _methods_reading(self, draft: str) -> list[str]:
        return sorted({s.method for s, _ in self._speculators() if self._reads(s, draft)})

    def _as_draft(self, name: str) -> str:
        """What to say of an architecture that is a draft; nothing of any other."""
        methods = sorted(
            {s.method for s, _ in self._speculators() if name in s.draft_architectures}
        )
        if not methods:
            return ""
        return (
            ": it is a draft, which reads its target's hidden states and cannot run alone; give "
            "the target as the model and this one as --draft with --speculative "
            f"{' or '.join(methods)}"
        )

    def _reads(self, speculator: SpeculatorSpec, draft: str) -> bool:
        names = speculator.draft_architectures
        return draft in names or ("*" in names and draft in self._targets)

    def _refuse(self, *parts: str) -> NoReturn:
        """Raises RouteError of one line, chained to what the failed plugins raised."""
        said = list(parts)
        if self.limited_to is not None:
            said.append(f"PILOTFISH_PLUGINS limits loading to {_listed(self.limited_to)}")
        said.extend(str(failure) for failure in self.failures)
        error = RouteError("; ".join(said))
        causes = [failure.error for failure in self.failures]
        if not causes:
            raise error
        raise error from (
            causes[0] if len(causes) == 1 else ExceptionGroup("plugins failed to load", causes)
        )


def _composes(speculator: SpeculatorSpec, target: ArchitectureSpec) -> bool:
    return not speculator.targets and speculator.needs <= target.capabilities


def _misfits(offers: Sequence[tuple[SpeculatorSpec, Plugin]], target: ArchitectureSpec) -> str:
    reasons = []
    for spec, plugin in offers:
        if spec.targets:
            reasons.append(f"plugin {plugin} serves only {_listed(spec.targets)}")
            continue
        missing = sorted(spec.needs - target.capabilities)
        reasons.append(
            f"plugin {plugin} needs {_listed(missing)} of its target, which offers "
            f"{_listed(target.capabilities)}"
        )
    return ", ".join(reasons)


def _claim_once(
    kind: str, claims: Iterable[tuple[str, tuple[T, Plugin]]]
) -> dict[str, tuple[T, Plugin]]:
    """name -> (spec, plugin). Raises PluginConflictError naming both claimants of one name."""
    claimed: dict[str, tuple[T, Plugin]] = {}
    for name, (spec, plugin) in claims:
        if name in claimed:
            raise PluginConflictError(
                f"the {kind} {name!r} is claimed by plugin {claimed[name][1]} and by plugin "
                f"{plugin}: uninstall one, or name the plugins to load in PILOTFISH_PLUGINS"
            )
        claimed[name] = (spec, plugin)
    return claimed


def _drafts_read(names: Sequence[str]) -> str:
    return "any architecture that is served" if "*" in names else _listed(names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
