"""The contracts between the core and the architecture plugins."""

from pilotfish.batch import ImageFeatures
from pilotfish.config.hf_options import NO_LIMIT
from pilotfish.protocols.config import ArchConfig
from pilotfish.protocols.images import ImageMemory, ImageProcessor
from pilotfish.protocols.model import (
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    ReturnHiddenStates,
    ReturnLogits,
    SpeculativeTarget,
)
from pilotfish.protocols.optional import OptionalOfConfig, OptionalOfModel
from pilotfish.records import TensorRecord

__all__ = [
    "NO_LIMIT",
    "ArchConfig",
    "ImageFeatures",
    "ImageMemory",
    "ImageProcessor",
    "ModelInputs",
    "ModelOutputs",
    "OptionalOfConfig",
    "OptionalOfModel",
    "PipelineModel",
    "ReturnHiddenStates",
    "ReturnLogits",
    "SpeculativeTarget",
    "TensorRecord",
]
