"""Requests from a JSONL file: one object a line, checked before anything is loaded.

Knows: the fields of a line. Does not know: how a request is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams

_PROMPT_FIELDS = ("prompt", "chat", "prompt_token_ids")


@attrs.frozen(kw_only=True)
class FileRequest:
    """One request: exactly one of the three prompts, and its sampling parameters.

    chat: a user's message, or a list of {"role", "content"} messages, whose content is text or a
        list of parts as the model's template knows them.
    images: paths, one for each placeholder of the prompt; for a user's message they come first.
    """

    prompt: str | None = None
    chat: str | list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    images: list[str] = attrs.field(factory=list)
    params: SamplingParams


def read_requests(path: str, defaults: dict[str, Any]) -> list[FileRequest]:
    """Reads a JSONL file; `defaults` are sampling fields that a line may override.

    Raises RequestError naming the line for bad JSON, unknown fields and bad values.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise RequestError(
            f"cannot read --input-file {path}: {error.strerror}; wanted a JSONL file"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--input-file {path} is not UTF-8 text: {error.reason}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise RequestError(f"--input-file {path} has no request; wanted one JSON object a line")
    return [_read_line(f"{path}, line {number}", line, defaults) for number, line in numbered]


def _read_line(where: str, line: str, defaults: dict[str, Any]) -> FileRequest:
    from pilotfish.config import SamplingParams

    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON that can be read ({error})") from error
    if not isinstance(fields, dict):
        raise RequestError(f"{where}: got {type(fields).__name__}; wanted a JSON object")
    given = [name for name in _PROMPT_FIELDS if name in fields]
    if len(given) != 1:
        raise RequestError(
            f"{where}: got {' and '.join(given) or 'no prompt'}; "
            f"wanted exactly one of {', '.join(_PROMPT_FIELDS)}"
        )
    prompt = fields.pop(given[0])
    _check_prompt(where, given[0], prompt)
    images = fields.pop("images", [])
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise RequestError(f"{where}: images is {images!r:.60}; wanted a list of paths")
    for name in ("video", "videos", "audio"):
        if name in fields:
            raise RequestError(f"{where}: {name} is not served; wanted text and images")
    known = [*(field.name for field in attrs.fields(SamplingParams)), "images"]
    for name in fields:
        if name not in known:
            raise RequestError(
                f"{where}: unknown field {name!r}{did_you_mean(name, [*known, *_PROMPT_FIELDS])}"
            )
    if "logit_bias" in fields and isinstance(fields["logit_bias"], dict):
        fields["logit_bias"] = _int_keys(where, fields["logit_bias"])
    try:
        params = SamplingParams(**{**defaults, **fields})
    except (RequestError, TypeError) as error:
        raise RequestError(f"{where}: {error}") from error
    return FileRequest(**{given[0]: prompt}, images=images, params=params)


def _check_prompt(where: str, name: str, prompt: Any) -> None:
    if name == "prompt_token_ids":
        fits = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        wanted = "a list of whole numbers"
    elif name == "chat":
        fits = isinstance(prompt, str) or (
            isinstance(prompt, list)
            and all(
                isinstance(message, dict)
                and isinstance(message.get("role"), str)
                and _is_content(message.get("content"))
                for message in prompt
            )
        )
        wanted = 'a string or a list of {"role", "content"} objects'
    else:
        fits, wanted = isinstance(prompt, str), "a string"
    if not fits:
        raise RequestError(f"{where}: {name} is {prompt!r:.60}; wanted {wanted}")


def _is_content(content: Any) -> bool:
    """Text, or a list of parts: {"type": "text", "text": ...}, {"type": "image"}."""
    return isinstance(content, str) or (
        isinstance(content, list)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    )


def _int_keys(where: str, bias: dict[str, Any]) -> dict[int, Any]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise RequestError(f"{where}: logit_bias keys must be token ids ({error})") from error
