"""Bugs of images in prompts: where their rows go, what they see, and what a page's key says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from support.planted_bugs import bug

KIMI = ("KimiK25ForConditionalGeneration", "whole")


@bug(
    0,
    "every chunk of an image begins with its first row",
    "images may be cut anywhere",
    "pilotfish.multimodal.model:_image_uses",
    KIMI,
)
def _(real: Any) -> Any:
    def uses(contexts: Any) -> Iterator[Any]:
        for use in real(contexts):
            yield attrs.evolve(use, start=0, stop=use.stop - use.start)

    return uses


@bug(
    35,
    "the patches of all images of a pass attend to one another",
    "images do not meet",
    "pilotfish_kimi_k25.vision.network:VisionBlock._attend",
    KIMI,
)
def _(real: Any) -> Any:
    return lambda self, x, counts, *rest: real(self, x, [sum(counts)], *rest)


@bug(
    7,
    "a page's key has the placeholder and not the image",
    "another image is no prefix hit",
    "pilotfish.batch:PlacedImage.key",
    KIMI,
)
def _(real: Any) -> Any:
    del real
    return property(lambda self: 94)


@bug(
    43,
    "an image is taken and never looked at",
    "images matter",
    "pilotfish.multimodal.model:ImageDecoderModel.embed_inputs",
    KIMI,
)
def _(real: Any) -> Any:
    del real
    return lambda self, inputs, tokens: self.embed(tokens)


@bug(
    43,
    "an image that is not served is answered blind",
    "images are refused by name",
    "pilotfish.multimodal.admission:ImageAdmission.place",
)
def _(real: Any) -> Any:
    return lambda self, tokens, images: real(self, tokens, ())
