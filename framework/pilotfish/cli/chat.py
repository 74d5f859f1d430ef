"""`pilotfish chat`: a conversation in the terminal.

Knows: the dialogue. Does not know: how an answer is made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from pilotfish.cli.chat_options import add_chat_flags, given_by_flags
from pilotfish.cli.deltas import check_show_draft, draft_colors, plain_text, tell_of_other_text
from pilotfish.cli.options import (
    add_model_flags,
    add_sampling_flags,
    check_sampling,
    load_llm,
    sampling_params,
    tell_of_defaults,
)
from pilotfish.cli.standard_streams import check_input, no_text
from pilotfish.errors import CapacityError, RequestError

_HELP = "Enter a message; /clear forgets the conversation, /exit or Ctrl-D ends it."


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat", help="talk to a model", description="Talk to a model in the terminal."
    )
    add_model_flags(parser)
    parser.add_argument(
        "--show-draft", action="store_true", help="mark accepted and rejected drafts"
    )
    parser.add_argument("--system", metavar="P", help="system message")
    add_chat_flags(parser)
    add_sampling_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    check_show_draft(args)
    check_sampling(args)
    options = given_by_flags(args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    with load_llm(args) as llm:
        messages = list(opening)
        first = [*messages, {"role": "user", "content": "hello"}]
        llm.chat_prompt(first, **options)  # has it a template, and does that take what was given?
        params = sampling_params(args, llm.default_sampling_params())
        tell_of_defaults(args, llm.default_sampling_params())
        print(_HELP, file=sys.stderr)
        tell_of_other_text(args)
        while (message := _read_message()) is not None:
            if message == "/clear":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": message})
            try:
                show = draft_colors(llm) if args.show_draft else plain_text
                answer = _answer(llm.stream(llm.chat_prompt(messages, **options), params), show)
            except (RequestError, CapacityError) as error:
                messages.pop()
                print(f"pilotfish: {error}; /clear starts again", file=sys.stderr)
                continue
            messages.append({"role": "assistant", "content": answer})
    return 0


def _read_message() -> str | None:
    """The next line that is not empty; None at the end."""
    check_input()
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return None
        except UnicodeError as error:
            raise no_text(error) from error
        if line in ("/exit", "/quit"):
            return None
        if line:
            return line


def _answer(deltas: Any, show: Callable[[Any], str]) -> str:
    """Prints the answer as it comes; Ctrl-C cuts it and keeps what was said."""
    said: list[str] = []
    try:
        for delta in deltas:
            if delta.output is not None and delta.output.error is not None:
                raise RequestError(delta.output.error)
            said.append(delta.text)
            sys.stdout.write(show(delta))
            sys.stdout.flush()
    except KeyboardInterrupt:
        deltas.close()
    sys.stdout.write("\n")
    return "".join(said)
