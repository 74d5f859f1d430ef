"""ChatTemplate: the jinja templates of a checkpoint, rendered without trusting them.

Knows: which of several templates is meant, and what a caller may give to one. Does not know:
tokens. Rendering is transformers' own, in jinja's sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from pilotfish.config.chat import CHAT_OPTIONS, COMMON_VARIABLES
from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean
from pilotfish.warn import warn_caller

DEFAULT = "default"
_FOR_TOOLS = "tool_use"


class ChatTemplate:
    """Renders messages to the text that a model was trained on.

    source: jinja text, or several by name, of which "default" is taken, and "tool_use" where tools
        are given. special_tokens: "bos_token" and the like -> text, as template variables.
    A template is compiled when it is first rendered.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.templates = {DEFAULT: source} if isinstance(source, str) else dict(source)
        self._special_tokens = dict(special_tokens or {})

    @property
    def source(self) -> str:
        """The text of all templates."""
        return "\n".join(self.templates.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation, as transformers renders it.

        messages: dicts with "role" and "content"; fields that are None are left out. Content that
            is a list of texts alone is one text, a line each, for a template that takes no lists.
        tools: JSON schemas, or functions with type hints and a docstring. documents: dicts.
        chat_template: name of one of several, or jinja text in place of the checkpoint's.
        add_generation_prompt: ends with the beginning of an answer; None does, unless the last
            message is continued. continue_final_message: leaves the last message open, so that the
            answer continues it; a text names the field that is continued.
        variables: what else the template reads, e.g. enable_thinking.
        Raises RequestError for a variable that nobody reads, and with the template's own words
        when it is not valid or refuses the messages.
        """
        listed = _checked(messages)
        source = self._source(chat_template, has_tools=tools is not None)
        self._check_variables(source, variables)
        if tools and not _reads(source, "tools"):
            warn_caller("the chat template does not read tools: the model is not told of them")
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message were both given; wanted one: the "
                "answer begins a message, or continues the last one"
            )
        from transformers.utils.chat_template_utils import render_jinja_template

        def rendered(conversation: list[dict[str, Any]]) -> str:
            texts, _ = render_jinja_template(
                conversations=[conversation],
                tools=None if tools is None else list(tools),
                documents=None if documents is None else list(documents),
                chat_template=source,
                continue_final_message=continue_final_message,
                add_generation_prompt=not continue_final_message
                if add_generation_prompt is None
                else add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
            return str(texts[0])

        try:
            return _rendered_with_parts(rendered, listed)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(
                f"the chat template is not valid, line {error.lineno}: {error}; pass another as "
                "chat_template, or plain prompts"
            ) from error
        except Exception as error:  # a template may raise what any code may raise
            has_parts = any(isinstance(one.get("content"), list | tuple) for one in listed)
            wanted = "text as content, where the template takes no list of parts, and " * has_parts
            raise RequestError(
                f"the chat template cannot render these messages: {_said(error)}; wanted {wanted}"
                "dicts with 'role' and 'content' in an order that the model knows"
            ) from error

    def _source(self, wanted: str | None, *, has_tools: bool) -> str:
        if wanted is not None:
            if wanted not in self.templates and "{" not in wanted:
                raise RequestError(
                    f"chat_template is {wanted!r:.60}; wanted jinja text, or one of the "
                    f"checkpoint's: {', '.join(sorted(self.templates)) or 'it has none'}"
                )
            return self.templates.get(wanted, wanted)
        for name in (_FOR_TOOLS,) * has_tools + (DEFAULT,):
            if name in self.templates:
                return self.templates[name]
        names = ", ".join(sorted(self.templates))
        raise RequestError(
            f"the checkpoint has chat templates named {names} and none is the default; pass one of "
            "the names as chat_template"
        )

    def _check_variables(self, source: str, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if _reads(source, name):
                continue
            if name not in COMMON_VARIABLES:
                raise RequestError(
                    f"the chat template does not read {name!r}"
                    f"{did_you_mean(name, (*CHAT_OPTIONS, *COMMON_VARIABLES, *_words(source)))}; "
                    f"wanted a variable that it reads, or one of {', '.join(CHAT_OPTIONS)}"
                )
            warn_caller(f"the chat template does not read {name}: it changes nothing")


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(messages, list | tuple):
        raise RequestError(
            f"messages is {type(messages).__name__}; wanted a user's message, or a list of dicts "
            "with 'role' and 'content'"
        )
    if not messages:
        raise RequestError("the conversation is empty; wanted one message at least")
    for message in messages:
        if not isinstance(message, Mapping):
            raise RequestError(
                f"a message is {type(message).__name__}; wanted a dict with 'role' and 'content'"
            )
    return [
        {key: value for key, value in message.items() if value is not None} for message in messages
    ]


def _rendered_with_parts(
    rendered: Callable[[list[dict[str, Any]]], str], messages: list[dict[str, Any]]
) -> str:
    """Rendered as the messages are, or with lists of texts joined where that loses a text.

    A template that takes no lists raises, leaves the content out, or writes it as Python would.
    Raises what `rendered` raises of the joined messages.
    """
    joined = [_joined(message) for message in messages]
    lists = [old["content"] for old, new in zip(messages, joined, strict=True) if old is not new]
    if not lists:
        return rendered(messages)
    try:
        text = rendered(messages)
    except jinja2.TemplateSyntaxError:
        raise
    except Exception:  # a template may raise what any code may raise
        return rendered(joined)

    def is_whole(text: str) -> bool:
        return all(part["text"].strip() in text for parts in lists for part in parts)

    is_raw = any(str(list(parts)) in text for parts in lists)
    if is_whole(text) and not is_raw:
        return text
    other = rendered(joined)
    return other if is_raw or is_whole(other) else text


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its texts as one, a line each; itself where it has other content."""
    parts = message.get("content")
    if not isinstance(parts, list | tuple) or not parts:
        return message
    for part in parts:
        is_text = isinstance(part, Mapping) and part.get("type", "text") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            return message
    return {**message, "content": "\n".join(part["text"] for part in parts)}


def _reads(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _words(source: str) -> list[str]:
    """The names inside a template's tags."""
    tags = re.findall(r"\{[{%].*?[%}]\}", source, flags=re.DOTALL)
    return sorted({word for tag in tags for word in re.findall(r"\b[a-z]\w+\b", tag)})


def _said(error: Exception) -> str:
    """What a template raised; Python's own exceptions with their kind."""
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return f"{kind}{error}"
