"""The options that a user sets, as frozen, validated records. Import-light: no torch."""

from pilotfish.config.cache import CacheConfig
from pilotfish.config.model import ModelConfig
from pilotfish.config.parallel import ParallelConfig
from pilotfish.config.pipeline import PipelineConfig
from pilotfish.config.runtime import RuntimeConfig
from pilotfish.config.sampling import SamplingParams
from pilotfish.config.speculative import SpeculativeConfig

__all__ = [
    "CacheConfig",
    "ModelConfig",
    "ParallelConfig",
    "PipelineConfig",
    "RuntimeConfig",
    "SamplingParams",
    "SpeculativeConfig",
]
