"""UnifiedConfig: a target's configuration and its draft's, of a pair that runs as one model.

Knows: how both are made from one PipelineConfig. Does not know: any target or drafter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig, SpeculativeConfig
from pilotfish.config.hf_options import run_dtype
from pilotfish.errors import ConfigError
from pilotfish.plugins import load_registry
from pilotfish.protocols import ArchConfig
from pilotfish.protocols.optional import of_config
from pilotfish.registry import Registry, Route
from pilotfish.speculation.width import check_width
from pilotfish.state import CacheParams, StateSpec

_WIDTH = 3
"""Tokens drafted in a step where neither the options nor the draft give a number."""


@attrs.frozen(kw_only=True)
class UnifiedConfig:
    """target: the target's own configuration. draft: the drafter's.

    A subclass names `method` and the `target_architectures` it is for.
    """

    method: ClassVar[str]
    target_architectures: ClassVar[tuple[str, ...]]

    target: ArchConfig
    draft: Any
    speculative_config: SpeculativeConfig

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Both configurations. model_config: the target; None means `pipeline_config.model`.

        registry: where the plugins of both are found; None loads the installed ones.
        Raises ConfigError for a target of another architecture, for a width schedule or one above
        the draft's, and for positions that depend on the length of the text; RouteError for a draft
        of another method; and as both configurations do.
        """
        model = model_config or pipeline_config.model
        # One dtype for both: the draft reads the target's numbers.
        runtime = attrs.evolve(pipeline_config.runtime, dtype=run_dtype(pipeline_config, model))
        pair = attrs.evolve(pipeline_config, model=model, runtime=runtime)
        registry = registry or load_registry()
        route = cls.route(pair, registry)
        draft_class: Any = route.speculator_config_class()
        speculative = pipeline_config.speculative or SpeculativeConfig(method=cls.method)
        made = cls(
            target=route.config_class().initialize(pair),
            draft=draft_class.initialize(pair, registry=registry),
            speculative_config=speculative,
        )
        made._check()
        return made

    @classmethod
    def route(cls, pipeline_config: PipelineConfig, registry: Registry) -> Route:
        """The target's plugin and the drafter's. Raises as `initialize`."""
        target, draft = pipeline_config.model.architecture, pipeline_config.draft_model
        if target not in cls.target_architectures:
            wanted = " or ".join(repr(name) for name in cls.target_architectures)
            raise ConfigError(f"the target's architecture is {target!r}; wanted {wanted}")
        return registry.route(target, cls.method, None if draft is None else draft.architecture)

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        draft_huggingface_config: Any,
        draft_state_dict: Mapping[str, Any],
    ) -> Self:
        """Both completed, each from its own tensors' names."""
        return attrs.evolve(
            self,
            target=self.target.finalize(huggingface_config, state_dict),
            draft=self.draft.finalize(draft_huggingface_config, draft_state_dict),
        )

    def _check(self) -> None:
        """What a step by itself cannot do, and what `LLM` would refuse too."""
        options = self.speculative_config
        if options.method != self.method:
            raise ConfigError(f"the method is {options.method!r}; wanted {self.method!r} here")
        if isinstance(options.width, Mapping):
            raise ConfigError(
                f"width is the schedule {dict(options.width)!r}; wanted a number or 'adaptive': "
                "whoever runs the steps makes the schedule"
            )
        check_width(options, self.draft.max_draft_tokens)
        for part in (self.target, self.draft):
            if of_config(part).prefix_salt(2**30):
                raise ConfigError(
                    "rotary positions of the target or the draft depend on the length of the text, "
                    "which a step does not know; use LLM(model, draft=...)"
                )

    @property
    def width(self) -> int:
        """Tokens drafted in a step."""
        width, most = self.speculative_config.width, self.draft.max_draft_tokens
        if isinstance(width, int):
            return width
        return _WIDTH if most is None else int(most)

    def get_kv_params(self) -> CacheParams:
        """The target's; the draft's are `draft.get_kv_params()`, over the same pages."""
        return self.target.get_kv_params()

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """The target's paged caches and the draft's."""
        return (*self.target.get_state_specs(), *self.draft.get_state_specs())

    def get_max_seq_len(self) -> int:
        """The target's: past the draft's own limit the text goes on without a draft."""
        return self.target.get_max_seq_len()
