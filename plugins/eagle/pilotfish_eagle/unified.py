"""A Llama target and its EAGLE draft as one model: names over `pilotfish.speculation.unified`."""

from __future__ import annotations

from typing import ClassVar

import attrs

from pilotfish.speculation.unified import UnifiedConfig, UnifiedModel
from pilotfish_eagle.inputs import UnifiedEagleLlama3Inputs


@attrs.frozen(kw_only=True)
class UnifiedEagleLlama3Config(UnifiedConfig):
    """target: the Llama's own configuration. draft: the EAGLE draft's."""

    method: ClassVar[str] = "eagle"
    target_architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)


class UnifiedEagleLlama3Model(UnifiedModel):
    """See the base."""

    config_class: ClassVar[type[UnifiedEagleLlama3Config]] = UnifiedEagleLlama3Config
    inputs_class: ClassVar[type[UnifiedEagleLlama3Inputs]] = UnifiedEagleLlama3Inputs
