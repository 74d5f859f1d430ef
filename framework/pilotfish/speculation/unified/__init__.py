"""A target and its draft as one model, for callers that run steps themselves."""

from pilotfish.speculation.unified.config import UnifiedConfig
from pilotfish.speculation.unified.inputs import UnifiedInputs, UnifiedOutputs
from pilotfish.speculation.unified.model import UnifiedModel

__all__ = ["UnifiedConfig", "UnifiedInputs", "UnifiedModel", "UnifiedOutputs"]
