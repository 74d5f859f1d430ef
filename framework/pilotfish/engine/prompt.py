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
_IDS = "prompt_token_ids"
"""Another name of `prompt` in a record, for token ids alone."""
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
        value = _with_prompt(value)
        for name in value:
            if name in _UNSERVED:
                raise RequestError(f"the prompt has {name}, which is not served; wanted images")
            if name == "multi_modal_data":
                raise RequestError(f"the prompt has {name}; wanted images, a list of images")
            if name not in _FIELDS:
                raise RequestError(
                    "the prompt has an unknown field "
                    f"{name!r}{did_you_mean(str(name), (*_FIELDS, _IDS))}; "
                    f"wanted {' and '.join(_FIELDS)}"
                )
        if "prompt" not in value:
            raise RequestError("the prompt's record has no 'prompt'; wanted text or token ids")
        return cls(**value)


Prompt: TypeAlias = str | Sequence[int] | MultimodalPrompt | Mapping[str, Any]
"""A mapping has the fields of MultimodalPrompt; its prompt may be named prompt_token_ids."""


def given_ids(prompt: Any) -> Sequence[int]:
    """The token ids of a prompt that was refused, as far as it has any, for its output."""
    if isinstance(prompt, MultimodalPrompt):
        prompt = prompt.prompt
    elif isinstance(prompt, Mapping):
        prompt = prompt.get("prompt", prompt.get(_IDS))
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


def _with_prompt(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record whose token ids are named `prompt`. Raises RequestError where it has both."""
    if _IDS not in record:
        return record
    if "prompt" in record:
        raise RequestError(f"the prompt's record has prompt and {_IDS}; wanted one of them")
    if isinstance(record[_IDS], str):
        raise RequestError(f"{_IDS} is a text; wanted token ids, or the text as prompt")
    others = {name: value for name, value in record.items() if name != _IDS}
    return {"prompt": record[_IDS], **others}


def _as_list(value: Any) -> Any:
    """An array or a tensor as lists; anything else as it is."""
    if getattr(value, "ndim", 0) and hasattr(value, "tolist") and not isinstance(value, RAW):
        return value.tolist()
    return value
