"""StatelessConfig: the configuration of a drafter that works on token ids alone.

Knows: what such a one says of itself: no checkpoint, no caches, no features. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import attrs

from pilotfish.protocols import ReturnHiddenStates

if TYPE_CHECKING:
    from pilotfish.config import ModelConfig, PipelineConfig
    from pilotfish.registry import Registry
    from pilotfish.state import StateSpec


@attrs.frozen(kw_only=True)
class StatelessConfig:
    """A SpeculatorConfig to derive from; a subclass adds its options.

    max_draft_tokens: most tokens a step; None: any number.
    """

    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE
    aux_hidden_state_layers: tuple[int, ...] = ()
    max_draft_tokens: int | None = None
    lookahead: int = 0

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Reads nothing of the target: any will do."""
        del pipeline_config, model_config, registry
        return cls()

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """There is no draft to read."""
        del huggingface_config, state_dict
        return self

    def num_scratch_rows(self, width: int) -> int:
        """It has no rows."""
        del width
        return 0

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """It has no caches."""
        return ()
