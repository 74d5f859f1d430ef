"""MultimodalPrompt: what a caller may ask: text or token ids, alone or with images.

Knows: the forms of a prompt. Does not know: tokenizers, image files or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from pilotfish.config.checks import plain
from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean

RAW = (bytes, bytearray, memoryview)
"""Sequences of whole numbers that are no token ids."""
_FIELDS = ("prompt", "images")
_UNSERVED = ("video", "videos", "audio", "audios")


def listed_images(value: Any) -> tuple[Any, ...]:
    """Images as a tuple. Raises RequestError for anything but a list or a tuple."""
    if not isinstance(value, list | tuple):
        raise RequestError(f"images is {type(value).__name__}; wanted a list of images")
    return tuple(value)


@attrs.frozen(kw_only=True, eq=False)
class MultimodalPrompt:
    """A prompt with images.

    prompt: text or token ids, with one placeholder of the model for each image, in their order.
    images: each a path, a PIL image, or one preprocessed: ImageFeatures, or a mapping with
        "pixel_values" and "grid_thw".
    Raises RequestError when a field is of another kind.
    """

    prompt: str | Sequence[int]
    images: Sequence[Any] = attrs.field(default=(), converter=listed_images)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.prompt, MultimodalPrompt | Mapping):
            raise RequestError(
                f"the prompt of a record is {type(self.prompt).__name__}; wanted text or token ids"
            )

    @classmethod
    def of(cls, value: Any) -> MultimodalPrompt:
        """From any form of a prompt. Raises RequestError naming an unknown or unserved field."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            return cls(prompt=_as_list(value))
        for name in value:
            if name in _UNSERVED:
                raise RequestError(f"the prompt has {name}, which is not served; wanted images")
            if name not in _FIELDS:
                raise RequestError(
                    f"the prompt has an unknown field {name!r}{did_you_mean(str(name), _FIELDS)}; "
                    f"wanted {' and '.join(_FIELDS)}"
                )
        if "prompt" not in value:
            raise RequestError("the prompt's record has no 'prompt'; wanted text or token ids")
        return cls(**value)


Prompt: TypeAlias = str | Sequence[int] | MultimodalPrompt | Mapping[str, Any]
"""A mapping has the fields of MultimodalPrompt."""


def given_ids(prompt: Any) -> Sequence[int]:
    """The token ids of a prompt that was refused, as far as it has any, for its output."""
    if isinstance(prompt, MultimodalPrompt):
        prompt = prompt.prompt
    elif isinstance(prompt, Mapping):
        prompt = prompt.get("prompt")
    return prompt if isinstance(prompt, list | tuple) else ()


def listed_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One text or one list of ids becomes a list of one. Raises RequestError for another kind."""
    prompts = _as_list(prompts)
    if isinstance(prompts, str | Mapping | MultimodalPrompt):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, RAW):
        raise RequestError(
            f"prompts is {type(prompts).__name__}; wanted a text, a list of token ids, a record "
            "with images, or a list of these"
        )
    listed: list[Any] = list(prompts)
    if listed and all(type(plain(item)) is int for item in listed):
        return [listed]
    return listed


def _as_list(value: Any) -> Any:
    """An array or a tensor as lists; anything else as it is."""
    if getattr(value, "ndim", 0) and hasattr(value, "tolist") and not isinstance(value, RAW):
        return value.tolist()
    return value
