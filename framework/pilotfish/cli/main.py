"""The console script: finds the verb, runs it, and turns errors into lines and exit codes.

Knows: the list of verbs. Does not know: what a verb does.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import pilotfish
from pilotfish import openmp
from pilotfish.cli.parser import Parser, UsageError
from pilotfish.errors import UserError
from pilotfish.nearest import did_you_mean

VERBS = ("generate", "chat", "inspect", "verify", "bench", "plugins")
"""Modules of this package, in the order of the help. Each is import-light and offers
`add_parser(subparsers) -> ArgumentParser` and `run(args) -> int` (the exit code)."""

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
_WANTED = f"wanted a verb: {', '.join(VERBS)}; see pilotfish --help"

DONE, OURS, USERS, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
"""Exit codes: done; a bug; the user's mistake; Ctrl-C; nobody reads the output any more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    argv: the arguments without the program's name; None means `sys.argv[1:]`.
    A `UserError` becomes one line on stderr and 2; anything else a traceback and 1.
    """
    if sys.stdout is None or sys.stderr is None:
        return USERS  # started without them: there is nowhere to say so
    openmp.spin_briefly()  # before torch is imported
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:  # argparse leaves this way after --help and --version
        return stop.code if isinstance(stop.code, int) else DONE
    except BaseException as error:
        return _code_of(error)
    try:
        code: int = import_module(f"pilotfish.cli.{args.verb}").run(args)
        sys.stdout.flush()
    except BaseException as error:
        return _code_of(error)
    return code


def _code_of(error: BaseException) -> int:
    """Says what is to be said of an exception, and returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("pilotfish: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return PIPE_CLOSED
    if isinstance(error, UserError):
        print(f"pilotfish: error: {_one_line(error)}", file=sys.stderr)
        return USERS
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
        print(f"pilotfish: error: cannot write the output: {error.strerror}", file=sys.stderr)
        _drop_output()
        return USERS
    traceback.print_exception(error)
    print(
        "pilotfish: this is a bug in Pilotfish or in a plugin; "
        "please report it with the lines above",
        file=sys.stderr,
    )
    return OURS


def _drop_output() -> None:
    """Python flushes stdout once more when it exits; gives it something that takes the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UsageError(
            f"unknown verb {argv[0]!r}{did_you_mean(argv[0], VERBS)}; "
            f"verbs: {', '.join(VERBS)}; see pilotfish --help"
        )
    parser = Parser(prog="pilotfish", description=pilotfish.__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"pilotfish {pilotfish.__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb in VERBS:
        import_module(f"pilotfish.cli.{verb}").add_parser(subparsers)
    args = parser.parse_args(argv)
    if args.verb is None:
        raise UsageError(_WANTED)
    return args


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())
