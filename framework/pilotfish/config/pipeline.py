"""PipelineConfig: everything that one engine is made from."""

from __future__ import annotations

import attrs

from pilotfish.config.cache import CacheConfig
from pilotfish.config.model import ModelConfig
from pilotfish.config.parallel import ParallelConfig
from pilotfish.config.runtime import RuntimeConfig
from pilotfish.config.speculative import SpeculativeConfig


@attrs.frozen(kw_only=True)
class PipelineConfig:
    """The user's options and the resolved checkpoints."""

    model: ModelConfig
    draft_model: ModelConfig | None = None
    cache: CacheConfig = attrs.field(factory=CacheConfig)
    runtime: RuntimeConfig = attrs.field(factory=RuntimeConfig)
    speculative: SpeculativeConfig | None = None
    parallel: ParallelConfig = attrs.field(factory=ParallelConfig)

    @property
    def whose_draft(self) -> str:
        """The draft as messages name it."""
        return "the draft" if self.draft_model is None else f"the draft {self.draft_model.model}"
