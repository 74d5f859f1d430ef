"""The console script: finds the verb, runs it, and turns errors into lines and exit codes.

Knows: the list of verbs. Does not know: what a verb does.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TextIO

from pilotfish.cli.interrupts import import_whole
from pilotfish.cli.parser import Parser, UsageError, with_variables
from pilotfish.errors import RankError, UserError, WorkerEnd
from pilotfish.nearest import did_you_mean
from pilotfish.platform import openblas, openmp
from pilotfish.warn import PilotfishWarning

VERBS = ("generate", "chat", "inspect", "verify", "bench", "plugins")
"""Modules of this package, in the order of the help. Each is import-light and offers
`add_parser(subparsers) -> ArgumentParser` and `run(args) -> int` (the exit code)."""

_WITHOUT_TORCH = ("plugins",)
_DESCRIPTION = "Model architectures and the drafters that swim ahead of them, as plugins."
_EPILOG = """\
examples:
  pilotfish chat demo
  pilotfish generate demo --chat "What is the capital of France?" --temperature 0
  pilotfish generate MODEL --input-file requests.jsonl --json > answers.jsonl
  pilotfish inspect MODEL

completion in the shell, in ~/.bashrc or ~/.zshrc:
  eval "$(register-python-argcomplete pilotfish)"

PILOTFISH_... variables hold defaults of flags: docs/environment.md
"""
_ELSEWHERE = {
    "run": "`chat MODEL` talks, `generate MODEL TEXT` answers once",
    "serve": "there is no server yet; LLM.astream is made for one: examples/server.py",
    "list": "`plugins` lists what is served; `hf cache ls` the models that were fetched",
    "version": "wanted `pilotfish --version`",
    "help": "wanted `pilotfish --help`, or `pilotfish VERB --help`",
    "pull": "a hub id is fetched when it is first used; `hf download ID` fetches it before",
}
"""Verbs of other programs, and what there is instead."""
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
_WANTED = f"wanted a verb: {', '.join(VERBS)}; see pilotfish --help"

DONE, OURS, USERS, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
"""Exit codes: done; a bug, or a rank that failed; the user's mistake; Ctrl-C; nobody reads the
output any more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    argv: the arguments without the program's name; None means `sys.argv[1:]`.
    A `UserError` becomes one line on stderr and 2; anything else a traceback and 1.
    """
    if sys.stdout is None or sys.stderr is None:
        return USERS  # started without them: there is nowhere to say so
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # Python looks for garbage as it ends: seconds, for nothing
    openmp.spin_briefly()  # before torch is imported
    if openblas.interprets_triton():
        openblas.multiply_rows_alike()  # before NumPy is
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    args: argparse.Namespace | None = None
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        if args.verb not in _WITHOUT_TORCH:
            import_whole()
        with _warnings_as_lines():
            code: int = import_module(f"pilotfish.cli.{args.verb}").run(args)
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, SystemExit) and (args is None or isinstance(error, WorkerEnd)):
            # of argparse after --help and --version, or of a rank that torchrun started
            return error.code if isinstance(error.code, int) else DONE
        return _code_of(error, args)
    return code


def _code_of(error: BaseException, args: argparse.Namespace | None) -> int:
    """Says what is to be said of an exception, and returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _drop(sys.stdout)
        return PIPE_CLOSED
    from pilotfish.cli.advice import with_flags

    if isinstance(error, UserError):
        line = " ".join(str(error).split())
        _say(f"error: {with_variables(with_flags(line), args)}")
        return USERS
    if _said_of_system(error):
        return USERS
    if isinstance(error, RankError):
        for note in getattr(error, "__notes__", ()):  # the other process's traceback
            _say(f"of another rank: {note}")
        _say(f"error: {with_flags(str(error))}")
        return OURS
    with _whatever_stderr_does():
        traceback.print_exception(error)
    _say("this is a bug in Pilotfish or in a plugin; please report it with the lines above")
    return OURS


def _said_of_system(error: BaseException) -> bool:
    """Whether it is the machine's fault, which is said then."""
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
        _say(f"error: cannot write the output: {error.strerror}")
        _drop(sys.stdout)
        return True
    if _lacks_temporary_folder(error):
        _say(
            "error: no folder for temporary files can be written, which torch and transformers ask "
            "for as they are imported; make room in /tmp, or set TMPDIR to a folder that can be "
            "written"
        )
        return True
    return False


def _say(line: str) -> None:
    with _whatever_stderr_does():
        print(f"pilotfish: {line}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Our own warnings have no line of a program to name: the user's program is this one."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, PilotfishWarning):
            _say(f"warning: {message}")
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


@contextmanager
def _whatever_stderr_does() -> Iterator[None]:
    """A full disk under it takes the words and leaves the exit code."""
    try:
        yield
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Python flushes streams once more when it exits; gives it something that takes the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _lacks_temporary_folder(error: BaseException | None) -> bool:
    """Whether Python's own search for such a folder is what failed, whoever asked."""
    while error is not None:
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        hint = _ELSEWHERE.get(argv[0])
        raise UsageError(
            f"unknown verb {argv[0]!r}{f': {hint}' if hint else did_you_mean(argv[0], VERBS)}; "
            f"verbs: {', '.join(VERBS)}; see pilotfish --help"
        )
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could be typed here
        import argcomplete

        argcomplete.autocomplete(parser)
    words = [word for word in argv if not word.startswith("-")]
    if words and argv[0].startswith("-") and words[0] not in VERBS:
        raise UsageError(f"got {argv[0]} {words[0]}; {_WANTED}")
    args = parser.parse_args(argv)
    if args.verb is None:
        raise UsageError(_WANTED)
    return args


def make_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog="pilotfish", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="the version, and of what else")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for verb in VERBS:
        import_module(f"pilotfish.cli.{verb}").add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Prints the versions of all parts."""

    def __call__(self, *_: object) -> None:
        from pilotfish.cli.version import versions

        print("\n".join(versions()))
        raise SystemExit(DONE)
