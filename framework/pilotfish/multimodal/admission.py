"""ImageAdmission: puts a prompt's images in the place of their placeholders, or refuses them.

Knows: placeholders, hashes and the forms of an image. Does not know: towers, files or requests.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any
from weakref import WeakValueDictionary

import attrs
import torch

from pilotfish.batch import PlacedImage
from pilotfish.config.checks import is_int
from pilotfish.errors import RequestError
from pilotfish.multimodal.files import read_pixels, read_size
from pilotfish.protocols import ImageFeatures, ImageProcessor
from pilotfish.tokenization.tokenizer import Tokenizer

_PIXELS, _GRIDS = "pixel_values", ("grid_thw", "image_grid_thw", "grid_thws")
_IMAGE_PARTS = ("image", "image_url")
DIGEST_BYTES = 32


@attrs.frozen(kw_only=True)
class ImageAdmission:
    """What images a model takes.

    architecture: its name, for messages. processor: None for text only.
    max_seq_len: tokens of a context; images that do not fit are refused before they are decoded.
    unserved_token_ids: placeholders, by kind, that the checkpoint has no part for.
    Requests that are unfinished share what they hold of one image.
    """

    architecture: str
    processor: ImageProcessor | None = None
    max_seq_len: int
    tokenizer: Tokenizer | None = None
    unserved_token_ids: Mapping[str, int] = attrs.field(factory=dict)
    _held: WeakValueDictionary[bytes, ImageFeatures] = attrs.field(
        factory=WeakValueDictionary, init=False, repr=False, eq=False
    )

    @property
    def placeholder_ids(self) -> frozenset[int]:
        """Token ids that a prompt of text cannot have; empty for an architecture of text only."""
        served = () if self.processor is None else (self.processor.placeholder_token_id,)
        return frozenset({*served, *self._unserved.values()})

    @property
    def _unserved(self) -> Mapping[str, int]:
        others = {} if self.processor is None else self.processor.unserved_token_ids
        return {**self.unserved_token_ids, **others}

    def place(
        self, tokens: Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[PlacedImage, ...]]:
        """The tokens with every placeholder as often as its image has rows, and the images.

        tokens: with one placeholder an image. Raises RequestError for images given to a text-only
        model, another number of placeholders than images, a placeholder of an unserved kind, and an
        image that cannot be read or does not fit the tower.
        """
        processor = self.processor
        self._check_kinds(tokens)
        if processor is None:
            if images:
                raise RequestError(
                    f"got {_counted(len(images), 'image')} and {self.architecture} serves text "
                    "only; wanted a prompt without images, or a model that serves them"
                )
            return list(tokens), ()
        placeholder = processor.placeholder_token_id
        count = sum(token == placeholder for token in tokens)
        if count != len(images):
            raise RequestError(
                f"the prompt has {_counted(count, 'image placeholder')} ({self._name(placeholder)})"
                f" and {_counted(len(images), 'image')}; wanted one placeholder for each image"
            )
        if len(tokens) > self.max_seq_len:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; wanted at most {self.max_seq_len}"
            )
        given = [self._as_given(processor, image, i) for i, image in enumerate(images)]
        least = sum(_least_tokens(processor, image, i) for i, image in enumerate(given))
        total = len(tokens) - len(images) + least
        if total > self.max_seq_len:  # said before any image is decoded
            raise RequestError(
                f"the prompt has {total} tokens, of which its {_counted(len(images), 'image')} "
                f"take {least}; wanted at most {self.max_seq_len}: give fewer or smaller images"
            )
        held = [self._shared(processor, image, i) for i, image in enumerate(given)]
        return _expanded(tokens, placeholder, held, processor)

    def check_parts(self, messages: str | Sequence[Mapping[str, Any]]) -> None:
        """Raises RequestError for a part of a message that is not served.

        messages: as a chat template takes them.
        """
        if not isinstance(messages, str | list | tuple):
            raise RequestError(
                f"messages is {type(messages).__name__}; wanted a user's message, or a list of "
                "dicts with 'role' and 'content'"
            )
        served = ("text",) if self.processor is None else ("text", *_IMAGE_PARTS)
        for message in () if isinstance(messages, str) else messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            for part in content if isinstance(content, list | tuple) else ():
                kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
                if kind not in served:
                    raise RequestError(
                        f"a message has a part of type {kind!r} and {self.architecture} serves "
                        f"{' and '.join(served[:2])}; wanted those"
                    )

    def _as_given(self, processor: ImageProcessor, image: Any, place: int) -> Any:
        """A preprocessed image, checked; anything else as it is."""
        name = f"image {place}"
        if isinstance(image, ImageFeatures):
            image = {_PIXELS: image.pixel_values, _GRIDS[0]: image.grid_thw}
        if not isinstance(image, Mapping):
            return image
        features = _from_mapping(image, name)
        _check_features(features, name)
        try:
            processor.check(features)
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from error
        return features

    def _shared(
        self, processor: ImageProcessor, image: Any, place: int
    ) -> tuple[bytes, ImageFeatures]:
        """The image's digest and features; those of another request where they are the same."""
        if not isinstance(image, ImageFeatures):
            image = processor.preprocess(read_pixels(image, f"image {place}"))
        digest = digest_of(image)
        return digest, self._held.setdefault(digest, image)

    def _check_kinds(self, tokens: Sequence[int]) -> None:
        wanted = "text" if self.processor is None else "text and images"
        for kind, token in self._unserved.items():
            if token in tokens:
                raise RequestError(
                    f"the prompt has a placeholder for {kind} ({self._name(token)}), which is not "
                    f"served; wanted {wanted}"
                )

    def _name(self, token: int) -> str:
        if self.tokenizer is None:
            return f"token id {token}"
        return self.tokenizer.decode([token], skip_special_tokens=False) or f"token id {token}"


def digest_of(features: ImageFeatures) -> bytes:
    """32 bytes that tell one image's content from any other's."""
    pixels = features.pixel_values.detach().cpu().contiguous()
    head = f"{pixels.dtype} {tuple(pixels.shape)} {features.grid_thw}".encode()
    hashed = blake2b(head, digest_size=DIGEST_BYTES, person=b"image")
    hashed.update(pixels.view(torch.uint8).numpy().tobytes())
    return hashed.digest()


def _expanded(
    tokens: Sequence[int],
    placeholder: int,
    held: Sequence[tuple[bytes, ImageFeatures]],
    processor: ImageProcessor,
) -> tuple[list[int], tuple[PlacedImage, ...]]:
    expanded: list[int] = []
    placed: list[PlacedImage] = []
    left = iter(held)
    for token in tokens:
        if token != placeholder:
            expanded.append(token)
            continue
        digest, image = next(left)
        count = processor.num_tokens(image.grid_thw)
        placed.append(
            PlacedImage(features=image, digest=digest, start=len(expanded), num_tokens=count)
        )
        expanded.extend([placeholder] * count)
    return expanded, tuple(placed)


def _least_tokens(processor: ImageProcessor, image: Any, place: int) -> int:
    """Tokens of an image that may yet be turned by a quarter; nothing is decoded."""
    if isinstance(image, ImageFeatures):
        return processor.num_tokens(image.grid_thw)
    height, width = read_size(image, f"image {place}")
    grids = {processor.grid_of(height, width), processor.grid_of(width, height)}
    return min(map(processor.num_tokens, grids))


def _from_mapping(given: Mapping[str, Any], name: str) -> ImageFeatures:
    """A preprocessed image as published processors return it, for one image."""
    grids = [key for key in _GRIDS if key in given]
    unknown = [key for key in given if key not in (_PIXELS, *_GRIDS)]
    if _PIXELS not in given or len(grids) != 1 or unknown:
        raise RequestError(
            f"{name} has the fields {sorted(map(str, given))}; wanted {_PIXELS} and grid_thw"
        )
    grid = _grid(given[grids[0]], f"{name} has {grids[0]}")
    return ImageFeatures(pixel_values=_pixels(given[_PIXELS], name), grid_thw=grid)


def _grid(given: Any, named: str) -> tuple[int, int, int]:
    """Three whole numbers, as they are or as the one row of a list, an array or a tensor."""
    try:
        listed = given.tolist() if hasattr(given, "tolist") else list(given)
        if len(listed) == 1 and not is_int(listed[0]):
            listed = listed[0].tolist() if hasattr(listed[0], "tolist") else list(listed[0])
        if any(isinstance(size, bool) for size in listed):
            raise TypeError("a bool is no number")
        frames, rows, columns = (operator.index(size) for size in listed)
    except Exception as error:  # anything may be given
        shown = " ".join(repr(given).split())
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise RequestError(
            f"{named} {shown}; wanted three whole numbers: frames, rows and columns of patches of "
            "one image"
        ) from error
    return frames, rows, columns


def _pixels(given: Any, name: str) -> torch.Tensor:
    """Finite floats in memory, float32."""
    try:
        values = torch.as_tensor(given)
        if values.is_meta or values.layout != torch.strided or values.is_quantized:
            raise TypeError("it is no dense tensor")
    except Exception as error:  # anything may be given, and torch has many exceptions
        said = str(error).partition("\n")[0]
        raise RequestError(
            f"{name} has {_PIXELS} of type {type(given).__name__} without numbers ({said}); wanted "
            "a tensor or an array of finite floats"
        ) from error
    if not values.is_floating_point():
        raise RequestError(
            f"{name} has {_PIXELS} of {str(values.dtype).removeprefix('torch.')}; wanted finite "
            "floats, as the image processor normalizes them: or give the image itself"
        )
    values = values.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise RequestError(f"{name} has {_PIXELS} with NaN or infinity; wanted finite floats")
    return values


def _check_features(features: ImageFeatures, name: str) -> None:
    pixels, (frames, rows, columns) = features.pixel_values, features.grid_thw
    if frames != 1:
        raise RequestError(
            f"{name} has grid_thw {list(features.grid_thw)}: {frames} frames, and video is not "
            "served; wanted 1 frame"
        )
    if rows < 1 or columns < 1 or pixels.dim() < 2 or pixels.shape[0] != rows * columns:
        raise RequestError(
            f"{name} has pixel_values {list(pixels.shape)} for grid_thw {list(features.grid_thw)}; "
            "wanted one item for each of rows x columns patches"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
