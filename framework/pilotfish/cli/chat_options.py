"""What a chat template is given: by flags, and by the fields of a JSONL line.

Knows: flag and field names. Does not know: templates, or which variables one reads.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pilotfish.cli.parser import add_flag, flag_of
from pilotfish.errors import RequestError

KWARGS = "chat_template_kwargs"
_LISTS = ("tools", "documents")
_GIVEN = ("messages", "images", "self")
"""What `LLM.chat_prompt` is given anyway."""
FIELDS = (*_LISTS, "chat_template", "continue_final_message", KWARGS)
"""Fields of a JSONL line beside `chat`."""


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """The flags; all are for chats."""
    add = partial(add_flag, parser.add_argument_group("chat template"))
    add("--tools", "a JSON list of tools' schemas (default: none)", metavar="F.json")
    add("--documents", "a JSON list of documents (default: none)", metavar="F.json")
    add(
        "--chat-template",
        "a file, or a name of the checkpoint's templates (default: its own)",
        metavar="NAME",
    )
    add(
        "--chat-template-kwargs",
        """what the template reads: '{"enable_thinking": false}' (default: none)""",
        metavar="JSON",
    )


def first_chat_flag(args: argparse.Namespace) -> str | None:
    """The first of the flags that was given; None where none was."""
    given = (name for name in FIELDS if getattr(args, name, None) is not None)
    return next(map(flag_of, given), None)


def given_by_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as keyword arguments of `LLM.chat_prompt`. Raises RequestError naming a bad one."""
    given: dict[str, Any] = {}
    if args.chat_template_kwargs is not None:
        given[KWARGS] = _parsed("--chat-template-kwargs", args.chat_template_kwargs)
    for name in _LISTS:
        if (path := getattr(args, name)) is not None:
            given[name] = _parsed(f"--{name} {path}", _read(f"--{name}", path))
    if (template := args.chat_template) is not None:
        is_file = os.path.isfile(template)  # false for what can be no path
        if is_file or (template.endswith((".jinja", ".txt")) and "{" not in template):
            template = _read("--chat-template", template)
        given["chat_template"] = template
    return chat_options("the flags", given)


def chat_options(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a line as keyword arguments of `LLM.chat_prompt`.

    Raises RequestError naming a field of another kind.
    """
    options = dict(fields)
    inner = options.pop(KWARGS, {})
    if not isinstance(inner, dict):
        raise RequestError(f"{where}: {KWARGS} is {inner!r:.60}; wanted a JSON object")
    for name in _GIVEN:
        if name in inner:
            raise RequestError(
                f"{where}: {KWARGS} has {name!r}; wanted what the template reads beside the "
                "conversation"
            )
    options = {**inner, **options}
    for name in _LISTS:
        value = options.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(one, dict) for one in value)
        ):
            raise RequestError(f"{where}: {name} is {value!r:.60}; wanted a list of JSON objects")
    for name, kinds, wanted in (
        ("chat_template", str, "a template, or the name of one"),
        ("continue_final_message", bool | str, "true, false or a field's name"),
    ):
        if name in options and not isinstance(options[name], kinds):
            raise RequestError(f"{where}: {name} is {options[name]!r:.60}; wanted {wanted}")
    return options


def _read(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read {flag} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{flag} {path} is not UTF-8 text: {error.reason}") from error


def _parsed(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{flag}: not JSON ({error})") from error
