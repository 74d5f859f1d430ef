"""What `chat` answers itself: lines of which the first word is a slash and letters.

Knows: commands, their help and their arguments. Does not know: how an answer is made.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.config.sampling import NO_LIMIT
from pilotfish.errors import RequestError
from pilotfish.nearest import did_you_mean

if TYPE_CHECKING:
    from pilotfish.cli.chat_talk import Talk
    from pilotfish.config import SamplingParams

_COMMAND = re.compile(r"(/[A-Za-z?]+)(?:\s+|$)")
_BLOCK = re.compile(r'\s*"""\n?(.*?)\n?"""\s*', re.DOTALL)

_KEYS = (
    "Enter sends. Esc-Enter or Alt-Enter begins a new line, and a text that begins with three",
    'quotes (""") goes on until three more. A pasted text stays whole.',
    "Up and Down: what you typed before; Ctrl-R searches there.",
    "Ctrl-C drops what you typed, or cuts an answer; twice it leaves, as Ctrl-D does.",
    "A message that begins with a slash and a word: put a space before it.",
)


def is_command(line: str) -> bool:
    """Whether the line is for the program; a path such as /etc/passwd is not."""
    return _COMMAND.match(line) is not None


def unquoted(text: str) -> str:
    """The text within a block of three quotes; any other text as it is."""
    block = _BLOCK.fullmatch(text)
    return text if block is None or '"""' in block[1] else block[1]


def run_command(talk: Talk, line: str) -> bool:
    """Answers a command; whether the chat ends with it. Raises RequestError saying what is wrong.

    Nothing is changed by a command that is refused.
    """
    found = _COMMAND.match(line)
    assert found is not None
    name, argument = found[1].lower(), line[found.end() :].strip()
    if name in _LEAVING:
        return True
    if name not in _ACTIONS:
        if name in _ELSEWHERE:
            raise RequestError(f"unknown command {found[1]}: {_ELSEWHERE[name]}")
        raise RequestError(
            f"unknown command {found[1]}{did_you_mean(name, NAMES)}; /help lists them, and a space "
            "before it sends it to the model"
        )
    _ACTIONS[name](talk, argument)
    return False


def _help(talk: Talk, argument: str) -> None:
    for usage, said in _HELP:
        _say(f"  {usage:<20} {said}")
    for line in _KEYS:
        _say(f"  {line}")


def _reset(talk: Talk, argument: str) -> None:
    talk.reset()
    kept = "" if talk.system is None else "; the system message stays"
    _say(f"the conversation is forgotten{kept}")


def _system(talk: Talk, argument: str) -> None:
    if not argument:
        _say("there is no system message" if talk.system is None else talk.system)
        return
    before = talk.messages
    talk.system = unquoted(argument) if argument != '""' else None
    try:
        talk.check(talk.messages)
    except RequestError:
        talk.messages = before
        raise


def _set(talk: Talk, argument: str) -> None:
    name, _, text = argument.removeprefix("parameter ").strip().partition(" ")
    if name == "system":
        _system(talk, text.strip())
        return
    name = name.replace("-", "_").lstrip("_")
    fields = [field.name for field in attrs.fields(type(talk.params))]
    if name in ("verbose", "quiet"):
        raise RequestError(f"no field {name!r}; /stats tells of the last answer, --stats of each")
    if name and name not in fields:
        raise RequestError(f"unknown field {name!r}{did_you_mean(name, fields)}; /set lists them")
    if text.strip():
        talk.params = _changed(talk.params, name, text.strip())
    for field in [name] if name else fields:
        _say(f"  {field:<20} {_shown(field, getattr(talk.params, field))}")


def _changed(params: SamplingParams, name: str, text: str) -> SamplingParams:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {"none": None, "true": True, "false": False}.get(text.lower(), text)
    if name == "max_tokens" and value is None:
        value = NO_LIMIT
    if name == "stop" and value is not None and not isinstance(value, list):
        value = text if not isinstance(value, str) else value
    if isinstance(value, dict):
        value = {int(key) if key.strip("-").isdigit() else key: one for key, one in value.items()}
    if name == "n" and value != 1:
        raise RequestError(f"n is {text}; wanted 1: a conversation has one answer to a message")
    return attrs.evolve(params, **{name: value})


def _shown(name: str, value: Any) -> str:
    if name == "max_tokens" and value == NO_LIMIT:
        return "none: to the end of the context"
    if name == "seed" and value is None:
        return "none: drawn for each answer"
    if value is None or value in ((), {}):
        return "none"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _save(talk: Talk, argument: str) -> None:
    first, _, rest = argument.partition(" ")
    may_overwrite = first == "-f"
    path = _path(rest.strip() if may_overwrite else argument, "/save FILE")
    text = json.dumps(talk.messages, ensure_ascii=False, indent=2) + "\n"
    try:
        with open(path, "w" if may_overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"{path} exists; /save -f {path} writes over it") from error
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error
    _say(f"{len(talk.messages)} messages are in {path}")


def _load(talk: Talk, argument: str) -> None:
    path = _path(argument, "/load FILE")
    try:
        messages = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(messages, ensure_ascii=False).encode()  # lone halves of letters are no text
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise RequestError(f'{path} has no list of {{"role", "content"}} objects, all of text')
    talk.check(messages)
    talk.messages, talk.last = messages, None
    _say(f"{len(messages)} messages; /regenerate answers the last one anew")


def _is_message(message: Any) -> bool:
    wanted = ("role", "content")
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in wanted)


def _path(text: str, wanted: str) -> Path:
    if not text or "\0" in text:
        raise RequestError(f"no file is named; wanted {wanted}")
    return Path(os.path.expanduser(text))


def _stats(talk: Talk, argument: str) -> None:
    if talk.last is None:
        _say("no answer yet")
        return
    used = talk.last.num_prompt_tokens + talk.last.num_tokens
    _say(f"  last answer: {talk.last.stats()}")
    _say(f"  context: {used} of {talk.llm.max_seq_len} tokens, {len(talk.messages)} messages")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_ACTIONS: dict[str, Callable[[Talk, str], None]] = {
    "/help": _help,
    "/?": _help,
    "/reset": _reset,
    "/clear": _reset,
    "/system": _system,
    "/set": _set,
    "/save": _save,
    "/load": _load,
    "/regenerate": lambda talk, _: talk.regenerate(),
    "/stats": _stats,
}
_LEAVING = ("/quit", "/exit", "/bye")
_ELSEWHERE = {
    "/show": "/set shows how answers are sampled, /system the system message, /stats the context",
    "/model": "a chat has one model; pilotfish chat MODEL talks with another",
    "/read": "/load goes on with messages of a file; a pasted text stays whole",
    "/undo": "/regenerate answers the last message anew, /reset forgets all",
}
"""Commands of other programs, and what there is instead."""
_HELP = (
    ("/help", "this"),
    ("/reset, /clear", "forget the conversation, but not the system message"),
    ("/system [TEXT]", 'show the system message, or set it; "" takes it away'),
    ("/set [NAME [VALUE]]", "show how answers are sampled, or set a field of SamplingParams"),
    ("/save [-f] FILE", "write the messages as JSON; -f writes over a file that is there"),
    ("/load FILE", "go on with the messages of such a file"),
    ("/regenerate", "another answer to the last message"),
    ("/stats", "tokens, speed and how full the context is"),
    ("/quit, /exit, /bye", "leave"),
)
NAMES = (*_ACTIONS, *_LEAVING)
