"""Llama3Model: the Llama family's network and weight names on the shared decoder model."""

from __future__ import annotations

from typing import ClassVar

from pilotfish.models.decoder import Decoder
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.inputs import DecoderInputs
from pilotfish.weights import WeightRules
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.inputs import Llama3Inputs
from pilotfish_llama3.network import build_network
from pilotfish_llama3.weights import weight_rules


class Llama3Model(DecoderModel):
    """Text generation with the Llama family; a target for any drafter."""

    config_class: ClassVar[type[Llama3Config]] = Llama3Config
    inputs_class: ClassVar[type[DecoderInputs]] = Llama3Inputs
    config: Llama3Config

    def build_network(self) -> Decoder:
        """The network of `self.config`."""
        return build_network(self.config)

    def weight_rules(self) -> WeightRules:
        """Hugging Face or GGUF names, as the config was finalized."""
        return weight_rules(self.config)
