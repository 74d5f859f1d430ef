"""`pilotfish chat`: a conversation in the terminal.

Knows: the loop from a message to its answer. Does not know: how either comes about.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.advice import flag_of_ours, with_flags
from pilotfish.cli.chat_commands import NAMES, is_command, run_command, unquoted
from pilotfish.cli.chat_keys import TypedKeys
from pilotfish.cli.chat_options import add_chat_flags, given_by_flags
from pilotfish.cli.chat_prompt import Dropped, PipedLines, Reader, has_keyboard, open_reader
from pilotfish.cli.chat_talk import Talk
from pilotfish.cli.deltas import check_show_draft, tell_of_other_text
from pilotfish.cli.loading import load_llm
from pilotfish.cli.options import add_model, add_model_flags
from pilotfish.cli.parser import add_flag
from pilotfish.cli.sampling_flags import add_sampling_flags, sampling_params, tell_of_defaults
from pilotfish.cli.terminal import say_dim
from pilotfish.config.sampling import NO_LIMIT
from pilotfish.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from pilotfish.engine import LLM

_HINT = "Enter a message; /help says what else there is, Ctrl-D ends it."
_EXAMPLES = (
    "pilotfish chat demo",
    'pilotfish chat MODEL --system "Answer briefly." --temperature 0.7 --stats',
    "pilotfish chat MODEL --speculative ngram --show-draft",
)

_ASKS = "chat asks for messages itself; wanted generate for one answer"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model in the terminal; /help there says what else it takes.",
        examples=_EXAMPLES,
        hints=dict.fromkeys(("--chat", "--prompt", ""), _ASKS),
        others=flag_of_ours,
    )
    add_model(parser)
    add = partial(add_flag, parser.add_argument_group("conversation"))
    add("--system", "system message (default: none)", metavar="TEXT")
    add("--stats", "tokens per second after an answer", action="store_true")
    add("--show-draft", "mark accepted and rejected drafts", action="store_true")
    add("--no-history", "do not keep what is typed for the next run", action="store_true")
    add_chat_flags(parser)
    add_sampling_flags(parser, longest="to the end of the context")
    add_model_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.config import SamplingParams

    check_show_draft(args)
    sampling_params(args, SamplingParams(max_tokens=NO_LIMIT))  # refused before a model is loaded
    options = given_by_flags(args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    first = [*opening, {"role": "user", "content": "hello"}]

    def check(llm: LLM) -> None:
        """Has it a template, does that take what was given, and what does the checkpoint say?"""
        llm.chat_prompt(first, **options)
        llm.default_sampling_params()

    fd = sys.stdin.fileno() if has_keyboard() else None
    with TypedKeys(fd) as keys, load_llm(args, check, keys) as llm:
        defaults = attrs.evolve(llm.default_sampling_params(), max_tokens=NO_LIMIT)
        talk = Talk(
            llm=llm,
            keys=keys,
            params=sampling_params(args, defaults),
            options=options,
            shows_drafts=args.show_draft,
            shows_stats=args.stats,
        )
        talk.system = args.system
        tell_of_defaults(args, llm.default_sampling_params())
        print(_HINT, file=sys.stderr)
        tell_of_other_text(args)
        _converse(talk, open_reader(keys, keeps_history=not args.no_history, commands=NAMES))
    return 0


def _converse(talk: Talk, reader: Reader) -> None:
    """Answers message by message, up to the end."""
    was_interrupted, is_piped = False, isinstance(reader, PipedLines)
    while True:
        try:
            message = reader.read(talk.keys.take())
            if message is None or _answer(talk, message, has_blocks=not is_piped):
                return
            was_interrupted = False
        except KeyboardInterrupt as interrupt:
            if is_piped or (was_interrupted and not isinstance(interrupt, Dropped)):
                raise
            was_interrupted = True
            say_dim("[Ctrl-C once more leaves]")


def _answer(talk: Talk, message: str, *, has_blocks: bool) -> bool:
    """Answers one message, a command or not; whether the chat ends with it.

    has_blocks: whether three quotes stand around a text of many lines.
    """
    try:
        if is_command(message):
            return run_command(talk, message)
        talk.ask(unquoted(message) if has_blocks else message)
    except (RequestError, CapacityError) as error:
        hint = "" if is_command(message) else "; /reset starts again"
        print(f"pilotfish: {with_flags(' '.join(str(error).split()))}{hint}", file=sys.stderr)
    return False
