"""KimiK25Model: the network, its weight names and its probes on the shared decoder model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from pilotfish.errors import ConfigError
from pilotfish.invariance.linear_probe import largest
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.layers.layer import KeepsBits
from pilotfish.models.inputs import DecoderInputs
from pilotfish.multimodal.model import ImageDecoderModel
from pilotfish.protocols import ImageFeatures
from pilotfish.weights import WeightRules
from pilotfish_kimi_k25.config import KimiK25Config
from pilotfish_kimi_k25.inputs import KimiK25Inputs
from pilotfish_kimi_k25.kernels.head_linear import head_row_multiple
from pilotfish_kimi_k25.kernels.native import LIBRARY
from pilotfish_kimi_k25.mla import UpProjection
from pilotfish_kimi_k25.network import KimiK25Network, build_network
from pilotfish_kimi_k25.weights import weight_rules


class KimiK25Model(ImageDecoderModel):
    """Text generation with Kimi K2.5, images included, or DeepSeek-V3; a target for any drafter."""

    keeps_bits: ClassVar[KeepsBits] = "portable"
    config_class: ClassVar[type[KimiK25Config]] = KimiK25Config
    inputs_class: ClassVar[type[DecoderInputs]] = KimiK25Inputs
    config: KimiK25Config
    network: KimiK25Network

    def build_network(self) -> KimiK25Network:
        """The network of `self.config`."""
        if self.backend.name == "native" and LIBRARY.why_not():
            raise ConfigError(
                f"the kernels are native and this architecture's own cannot be called: "
                f"{LIBRARY.why_not()}; wanted both libraries: install again, or use backend 'torch'"
            )
        return build_network(self.config)

    def weight_rules(self) -> WeightRules:
        """Hugging Face names, of every layout that is published."""
        return weight_rules(self.config)

    def encode_images(self, images: Sequence[ImageFeatures]) -> list[torch.Tensor]:
        """All images in one ragged pass of the vision tower: one [n, D] tensor each."""
        tower = self.network.vision
        if tower is None:
            raise ValueError("the network has no vision tower; wanted inputs without images")
        pixels = torch.cat([image.pixel_values.to(self.dtype) for image in images])
        return tower(
            pixels.to(self.device),
            [image.grid_thw for image in images],
            row_multiple=self.row_multiple,
            backend=self.backend,
        )

    def probe_own_rows(self, known: ProbeCache) -> int | None:
        """The row multiple of the products of single heads."""
        shapes = {
            shape
            for layer in self.network.layers_inside()
            if isinstance(layer, UpProjection)
            for shape in layer.product_shapes[:2]
        }
        return largest(
            head_row_multiple(shape, self.dtype, backend=self.backend, known=known)
            for shape in shapes
        )
