"""ArchConfig: what an architecture's configuration must offer.

Knows: when it is asked what. Does not know: any architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from pilotfish.config import ModelConfig, PipelineConfig
    from pilotfish.state import CacheParams, StateSpec


@runtime_checkable
class ArchConfig(Protocol):
    """An architecture's configuration: frozen, validated when it is made, in two phases.

    `initialize` needs no weights and is enough to plan memory; `finalize` reads what only the
    tensors can tell (a tied head, fused projections) and returns the completed configuration.
    What it may have besides, and most have not, is in `OptionalOfConfig`.
    """

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        """Builds the config from the Hugging Face config and the user's options.

        model_config: which model to read; None means `pipeline_config.model`.
        Raises ConfigError naming any option that changes the maths and is not understood.
        """
        ...

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Returns the config completed with facts read from the tensors' names and shapes."""
        ...

    def get_kv_params(self) -> CacheParams:
        """The geometry of the paged cache."""
        ...

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """Every cache that a request of this architecture needs; the engine allocates them."""
        ...

    def get_max_seq_len(self) -> int:
        """The longest context in tokens, prompt and answer together; NO_LIMIT for any."""
        ...
