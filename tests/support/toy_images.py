"""The toy with eyes: rows of images continue the hash with numbers of their own.

An image's row has a number made of its patch, so any mistake about which row is whose changes the
text, as a mistake about tokens does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import torch

from pilotfish.batch import PlacedImage, RequestContext
from pilotfish.errors import RequestError
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.protocols import ImageFeatures, ImageMemory, ModelInputs
from pilotfish.registry import ArchitectureSpec, Plugin, Registry
from pilotfish.state import KVCacheInputs
from support.toy_model import ToyConfig, ToyEngine, ToyModel, write_toy_checkpoint

PLACEHOLDER, VIDEO = 35, 37
"""Bytes "#" and "%"."""
SIDE = 8
"""Pixels of a patch's side; every patch is a token."""


@attrs.frozen(kw_only=True)
class ToyImageConfig(ToyConfig):
    """As the toy's."""

    def get_image_memory(self) -> ImageMemory:
        return ImageMemory(bytes_per_token=4, max_tokens=64, max_patches=64, pass_bytes=1000)


class ToyImageProcessor:
    """Patches are the sums of their pixels."""

    placeholder_token_id = PLACEHOLDER
    unserved_token_ids: Mapping[str, int] = {"video": VIDEO}

    @classmethod
    def from_checkpoint(cls, config: Any, directory: Path) -> Self:
        assert (directory / "config.json").is_file()
        return cls()

    def preprocess(self, pixels: torch.Tensor) -> ImageFeatures:
        rows, columns = (-(-size // SIDE) for size in pixels.shape[1:])
        wide = torch.zeros(3, rows * SIDE, columns * SIDE)
        wide[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        patches = wide.view(3, rows, SIDE, columns, SIDE).sum((0, 2, 4)).reshape(-1, 1)
        return ImageFeatures(pixel_values=patches, grid_thw=(1, rows, columns))

    def grid_of(self, height: int, width: int) -> tuple[int, int, int]:
        return (1, -(-height // SIDE), -(-width // SIDE))

    def check(self, features: ImageFeatures) -> None:
        if features.pixel_values.shape[1:] != (1,):
            raise RequestError(f"patches are {list(features.pixel_values.shape)}; wanted [P, 1]")

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        return grid_thw[1] * grid_thw[2]


class ToyImageModel(ToyModel):
    """Puts the numbers of images in the place of their placeholders."""

    config_class = ToyImageConfig

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> ModelInputs:
        inputs = super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits
        )
        tokens, first = inputs.tokens.clone(), 0
        for context in replica_batches[0]:
            for row in range(context.num_scheduled):
                place = context.num_computed + row
                for image in context.images:
                    if image.start <= place < image.stop:
                        tokens[first + row] = number_of(image.features, place - image.start)
            first += context.num_scheduled
        return attrs.evolve(inputs, tokens=tokens)


def number_of(features: ImageFeatures, row: int) -> int:
    """What a row of an image adds to the hash; never a token id."""
    return 1000 + int(features.pixel_values[row]) % 100_003


def seen_by(tokens: Sequence[int], images: Sequence[PlacedImage]) -> list[int]:
    """The whole prompt as the model sees it."""
    seen = list(tokens)
    for image in images:
        seen[image.start : image.stop] = [
            number_of(image.features, row) for row in range(image.num_tokens)
        ]
    return seen


@attrs.define(kw_only=True)
class ImageToyEngine(ToyEngine):
    """A ToyEngine whose model serves images."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.model = ToyImageModel(arch_config=ToyImageConfig(max_seq_len=self.max_seq_len))
        self.runner.model = self.model
        self.admission.images = ImageAdmission(
            architecture="ToyImageModel",
            processor=ToyImageProcessor(),
            max_seq_len=self.max_seq_len,
            tokenizer=self.admission.tokenizer,
        )


def toy_image_registry() -> Registry:
    """A registry that serves the toy with eyes and nothing else."""
    spec = ArchitectureSpec(
        names=("ToyImageModel",),
        config="support.toy_images:ToyImageConfig",
        model="support.toy_images:ToyImageModel",
        modalities=frozenset({"text", "image"}),
        image_processor="support.toy_images:ToyImageProcessor",
    )
    return Registry(plugins=(Plugin(name="toy", architectures=(spec,)),))


def write_image_checkpoint(directory: Path) -> Path:
    """As the toy's, under another name."""
    path = write_toy_checkpoint(directory) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["ToyImageModel"]}))
    return directory
