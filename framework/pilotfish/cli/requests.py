"""Requests from the lines of a JSONL file, one object a line.

Knows: the fields of a line. Does not know: where lines come from, or how a request is run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.chat_options import FIELDS, chat_options
from pilotfish.config.chat import COMMON_VARIABLES
from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams

_CHATS = ("chat", "messages")
_PROMPT_FIELDS = ("prompt", *_CHATS, "prompt_token_ids")
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
    custom_id: the asker's name for the request, which its answer is given too.
    """

    prompt: str | None = None
    chat: str | list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    chat_options: dict[str, Any] = attrs.field(factory=dict)
    images: list[str] = attrs.field(factory=list)
    sampling: dict[str, Any] = attrs.field(factory=dict)
    custom_id: str | None = None

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """How it is sampled; `defaults` for what was not given."""
        return attrs.evolve(defaults, **self.sampling)


@attrs.frozen(kw_only=True)
class Reading:
    """How lines become requests. name: of the file, as messages have it.

    sampling: fields of SamplingParams, options: what templates are given, system: a system message;
    a line's own win.
    """

    name: str
    sampling: dict[str, Any] = attrs.field(factory=dict)
    options: dict[str, Any] = attrs.field(factory=dict)
    system: str | None = None

    def request(self, number: int, line: bytes) -> FileRequest:
        """Of line `number`, from 1. Raises RequestError for one that is no request."""
        where = f"{self.name}, line {number}"
        fields = _fields(where, line)
        given = [name for name in _PROMPT_FIELDS if name in fields]
        if len(given) != 1:
            raise RequestError(
                f"{where}: got {' and '.join(given) or _no_prompt(fields)}; "
                f"wanted exactly one of {', '.join(_PROMPT_FIELDS)}"
            )
        name = given[0]
        prompt = fields.pop(name)
        _check_prompt(where, name, prompt)
        is_chat = name in _CHATS
        custom_id = fields.pop("custom_id", None)
        if not isinstance(custom_id, str | None):
            raise RequestError(f"{where}: custom_id is {custom_id!r:.60}; wanted a string")
        images = fields.pop("images", [])
        if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
            raise RequestError(f"{where}: images is {images!r:.60}; wanted a list of paths")
        given_here = {name: fields.pop(name) for name in _FOR_CHATS if name in fields and is_chat}
        sampling = self._sampling(where, fields)
        request = FileRequest(images=images, sampling=sampling, custom_id=custom_id)
        if not is_chat:
            return attrs.evolve(request, **{name: prompt})
        return attrs.evolve(
            request,
            chat=with_system(self.system, prompt, len(images)),
            chat_options={**self.options, **chat_options(where, given_here)},
        )

    def _sampling(self, where: str, fields: dict[str, Any]) -> dict[str, Any]:
        """What is left of a line: fields of SamplingParams, and none besides."""
        from pilotfish.config import SamplingParams

        fields = _as_ours(where, fields)
        known = [field.name for field in attrs.fields(SamplingParams)]
        for name in fields:
            if name in ("video", "videos", "audio"):
                raise RequestError(f"{where}: {name} is not served; wanted text and images")
            if name not in known:
                near = did_you_mean(name, [*known, "images", "custom_id", *_PROMPT_FIELDS, *FIELDS])
                also = "; it is read beside chat and messages" if name in _FOR_CHATS else near
                raise RequestError(f"{where}: unknown field {name!r}{also}")
        if isinstance(fields.get("logit_bias"), dict):
            fields["logit_bias"] = _int_keys(where, fields["logit_bias"])
        sampling = {**self.sampling, **fields}
        try:
            SamplingParams(**sampling)
        except (RequestError, TypeError) as error:
            raise RequestError(f"{where}: {error}") from error
        return sampling


def _as_ours(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields by the names that other programs give them, by ours."""
    from pilotfish.config.peers import SAMPLING

    found: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            ours = SAMPLING[name].options(value) if name in SAMPLING else {name: value}
        except ValueError as refusal:
            raise RequestError(f"{where}: got {name}: {value!r:.60}; {refusal}") from None
        for one in ours:
            if one in found or (one != name and one in fields):
                raise RequestError(f"{where}: got {name} and {one}; wanted one of them")
        found |= ours
    return found


def with_system(
    system: str | None, chat: str | list[dict[str, Any]], num_images: int
) -> str | list[dict[str, Any]]:
    """The chat with a system message before it, unless there is one, or none is given.

    num_images: before a user's message that is a text.
    """
    if system is None:
        return chat
    if isinstance(chat, str):
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
        content = [*parts, {"type": "text", "text": chat}] if parts else chat
        chat = [{"role": "user", "content": content}]
    elif chat and chat[0]["role"] == "system":
        return chat
    return [{"role": "system", "content": system}, *chat]


def _no_prompt(fields: dict[str, Any]) -> str:
    """What is said of a line without a prompt: the field that may have been meant for one."""
    near = (f"{name}{did_you_mean(name, _PROMPT_FIELDS)}" for name in fields)
    return "no prompt" + "".join(f", but {one}" for one in near if one.endswith(")"))


def _fields(where: str, line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON that can be read ({error})") from error
    if not isinstance(fields, dict):
        raise RequestError(f"{where}: got {type(fields).__name__}; wanted a JSON object")
    return fields


def _check_prompt(where: str, name: str, prompt: Any) -> None:
    if name == "prompt_token_ids":
        fits = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        wanted = "a list of whole numbers"
    elif name in _CHATS:
        fits = (isinstance(prompt, str) and name == "chat") or (
            isinstance(prompt, list)
            and all(
                isinstance(message, dict)
                and isinstance(message.get("role"), str)
                and _has_content(message)
                for message in prompt
            )
        )
        wanted = 'a list of {"role", "content"} objects'
        wanted = f"a string or {wanted}" if name == "chat" else wanted
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
