"""Whether the classes of an architecture have all that the engine asks of them, spelt right.

Knows: the contracts. Does not know: any architecture.
"""

from __future__ import annotations

from pilotfish.contracts import check_methods, check_spelling
from pilotfish.protocols.config import ArchConfig
from pilotfish.protocols.model import PipelineModel
from pilotfish.protocols.optional import OptionalOfConfig, OptionalOfModel


def check_target(architecture: str, config: type, model: type) -> None:
    """Raises PluginError naming what the classes of an architecture do not have, or misspell."""
    for_config, for_model = f"the config of {architecture}", f"the model of {architecture}"
    check_methods(config, ArchConfig, for_config)
    # Only a model with slots is asked for a cache.
    check_methods(model, PipelineModel, for_model, optional=["make_cache"])
    check_spelling(config, OptionalOfConfig, for_config)
    check_spelling(model, OptionalOfModel, for_model)
