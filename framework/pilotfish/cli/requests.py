"""Requests from a JSONL file: one object a line, checked before anything is loaded.

Knows: the fields of a line. Does not know: how a request is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.chat_options import FIELDS, chat_options
from pilotfish.cli.standard_streams import read_input
from pilotfish.config.chat import COMMON_VARIABLES
from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams

_PROMPT_FIELDS = ("prompt", "chat", "prompt_token_ids")
_FOR_CHATS = (*FIELDS, *COMMON_VARIABLES)
_CONTENT_FIELDS = ("content", "tool_calls", "reasoning_content", "reasoning", "thinking")


@attrs.frozen(kw_only=True)
class FileRequest:
    """One request: exactly one of the three prompts, and its sampling parameters.

    chat: a user's message, or a list of {"role", "content"} messages, whose content is text or a
        list of parts as the model's template knows them.
    chat_options: what the chat's template is given, tools for one.
    images: paths, one for each placeholder of the prompt; for a user's message they come first.
    sampling: fields of SamplingParams that were given.
    """

    prompt: str | None = None
    chat: str | list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    chat_options: dict[str, Any] = attrs.field(factory=dict)
    images: list[str] = attrs.field(factory=list)
    sampling: dict[str, Any] = attrs.field(factory=dict)

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """How it is sampled; `defaults` for what was not given."""
        return attrs.evolve(defaults, **self.sampling)


def read_requests(
    path: str, sampling: dict[str, Any], options: dict[str, Any] | None = None
) -> list[FileRequest]:
    """Reads a JSONL file; "-" is standard input.

    sampling: fields of SamplingParams, and options: what templates are given; a line's own win.
    Raises RequestError naming the line for bad JSON, unknown fields and bad values.
    """
    try:
        text = read_input() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
        lines = text.removeprefix("\ufeff").split("\n")
    except OSError as error:
        raise RequestError(
            f"cannot read --input-file {path}: {error.strerror}; wanted a JSONL file"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--input-file {path} is not UTF-8 text: {error.reason}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise RequestError(f"--input-file {path} has no request; wanted one JSON object a line")
    return [
        _read_line(f"{path}, line {number}", line, sampling, options or {})
        for number, line in numbered
    ]


def _read_line(
    where: str, line: str, sampling: dict[str, Any], options: dict[str, Any]
) -> FileRequest:
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
    is_chat = given[0] == "chat"
    given_here = {name: fields.pop(name) for name in _FOR_CHATS if name in fields and is_chat}
    known = [field.name for field in attrs.fields(SamplingParams)]
    for name in fields:
        if name not in known:
            near = did_you_mean(name, [*known, "images", *_PROMPT_FIELDS, *FIELDS])
            also = "; it is read beside chat" if name in _FOR_CHATS else near
            raise RequestError(f"{where}: unknown field {name!r}{also}")
    if "logit_bias" in fields and isinstance(fields["logit_bias"], dict):
        fields["logit_bias"] = _int_keys(where, fields["logit_bias"])
    sampling = {**sampling, **fields}
    try:
        SamplingParams(**sampling)
    except (RequestError, TypeError) as error:
        raise RequestError(f"{where}: {error}") from error
    return FileRequest(
        **{given[0]: prompt},
        chat_options={**options, **chat_options(where, given_here)} if is_chat else {},
        images=images,
        sampling=sampling,
    )


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
                and _has_content(message)
                for message in prompt
            )
        )
        wanted = 'a string or a list of {"role", "content"} objects'
    else:
        fits, wanted = isinstance(prompt, str), "a string"
    if not fits:
        raise RequestError(f"{where}: {name} is {prompt!r:.60}; wanted {wanted}")


def _has_content(message: dict[str, Any]) -> bool:
    """Text, or a list of parts: {"type": "text", "text": ...}, {"type": "image"}.

    No content, or null, where something else is said, such as the tools that are called.
    """
    content = message.get("content")
    if content is None:
        return any(message.get(name) is not None for name in _CONTENT_FIELDS)
    return isinstance(content, str) or (
        isinstance(content, list)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    )


def _int_keys(where: str, bias: dict[str, Any]) -> dict[int, Any]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise RequestError(f"{where}: logit_bias keys must be token ids ({error})") from error
