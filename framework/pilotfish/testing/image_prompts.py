"""Prompts with images, drawn for an architecture that serves them.

Knows: how token ids and images are put together. Does not know: who asks, or for what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch

from pilotfish.batch import PlacedImage
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.protocols import ImageProcessor

IMAGE_SIZES = ((48, 32), (20, 60), (30, 30))
"""Height and width in pixels."""


@attrs.frozen(kw_only=True)
class ImagePrompt:
    """Token ids as run, placeholders expanded, and the images in their places."""

    tokens: Sequence[int]
    images: Sequence[PlacedImage] = ()


def draw_image_prompt(
    tokens_of: Callable[[int, int], list[int]],
    admission: ImageAdmission,
    processor: ImageProcessor,
    num_images: int,
    seed: int,
) -> ImagePrompt:
    """Random token ids around random images of several sizes.

    tokens_of: (count, seed) -> token ids of text.
    """
    placeholder = processor.placeholder_token_id
    tokens = tokens_of(6, seed)
    images = []
    for number in range(num_images):
        tokens += [placeholder, *tokens_of(2 + number, 100 + seed + number)]
        height, width = IMAGE_SIZES[number % len(IMAGE_SIZES)]
        generator = torch.Generator().manual_seed(1000 * seed + number)
        pixels = torch.randint(0, 256, (3, height, width), generator=generator)
        images.append(processor.preprocess(pixels.to(torch.uint8)))
    placed = admission.place(tokens, images)
    return ImagePrompt(tokens=tuple(placed[0]), images=placed[1])
