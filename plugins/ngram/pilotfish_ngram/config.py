"""NgramConfig: how far back and how long matches are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.registry import Registry
from pilotfish.state import StateSpec


@attrs.frozen(kw_only=True)
class NgramConfig:
    """shortest, longest: tokens at the end of the text that must be found again."""

    shortest: int = 2
    longest: int = 5
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE
    taps: tuple[int, ...] = ()
    max_width: int | None = None
    lookahead: int = 0

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Reads nothing of the target: any text can be looked up."""
        return cls()

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """There is no draft to read."""
        return self

    def num_scratch_rows(self, width: int) -> int:
        """It has no rows."""
        return 0

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """It has no caches."""
        return ()
