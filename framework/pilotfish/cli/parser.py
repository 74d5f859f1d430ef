"""The argument parser: one line for a mistake, help with examples, defaults from the environment.

Knows: argparse. Does not know: any verb or flag.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from pilotfish.errors import UserError
from pilotfish.nearest import did_you_mean

PREFIX = "PILOTFISH_"
"""Of the variables that hold defaults of flags."""
_FORMATTER = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
"""Keeps the lines of examples, and has room for long flags."""


class UsageError(UserError):
    """The command line itself is wrong: unknown verb or flag, missing or malformed value."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing its usage and exiting.

    Verbs' parsers are of this class too: `add_subparsers` makes parsers of its parent's class.
    examples: command lines, and after two spaces what they do, that --help ends with.
    spare: the argument that takes a word without a flag that stands behind flags.
    hints: flags of other verbs, and what there is instead; "" for a word without a flag. others:
    what a flag of another program is here; "" where that is not known.
    """

    def __init__(
        self,
        *,
        examples: Sequence[str] = (),
        spare: str | None = None,
        hints: Mapping[str, str] | None = None,
        others: Callable[[str], str] = lambda flag: "",
        **options: Any,
    ) -> None:
        shown = "\n".join(f"  {line}" for line in examples)
        whole = {"formatter_class": _FORMATTER, "allow_abbrev": False, **options}
        super().__init__(**{"epilog": f"examples:\n{shown}" if examples else None, **whole})
        self._spare = spare
        self._hints = dict(hints or {})
        self._others = others

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and refuses what is left over: here this parser's own flags are known."""
        variables = self._take_environment()
        found, extra = super().parse_known_args(args, namespace)
        is_spare = bool(extra) and (not extra[0].startswith("-") or extra[0] == "-")
        if self._spare is not None and is_spare and getattr(found, self._spare) is None:
            setattr(found, self._spare, extra.pop(0))
        if extra:
            self._refuse(extra)
        if variables:
            found.variables = {
                dest: name
                for dest, (name, value) in variables.items()
                if vars(found)[dest] == value
            }
        return found, extra

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def variables(self) -> list[str]:
        """Names of the environment variables that hold defaults of this parser's flags."""
        return [action.variable for action in self._actions if isinstance(action, _FromVariable)]

    def _take_environment(self) -> dict[str, tuple[str, Any]]:
        """Makes the variables that are set defaults; of each flag that has one: name and value."""
        found: dict[str, tuple[str, Any]] = {}
        for action in self._actions:
            if not isinstance(action, _FromVariable) or not os.environ.get(action.variable):
                continue
            text = os.environ[action.variable]
            try:
                action.default = self._get_value(action, text)
            except argparse.ArgumentError as error:
                raise UsageError(f"{action.variable}={text}: {error.message}") from error
            found[action.dest] = (action.variable, action.default)
        return found

    def _refuse(self, extra: Sequence[str]) -> NoReturn:
        for word in extra:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                near = did_you_mean(flag, self._option_string_actions)
                hint = self._hints.get(flag) or self._others(flag)
                self.error(f"unknown flag {flag!r}{f': {hint}' if hint else near}")
        quoted = "; a prompt of several words stands in quotes" if self._spare is not None else ""
        hint = self._hints.get("", "")
        self.error(f"unexpected argument {extra[0]!r}{f': {hint}' if hint else quoted}")


class _FromVariable(argparse._StoreAction):
    """A flag whose default an environment variable may say: PILOTFISH_TOP_P that of --top-p."""

    @property
    def variable(self) -> str:
        return PREFIX + self.dest.upper()


def flag_of(field: str) -> str:
    """The flag of a field: --top-p of top_p."""
    return "--" + field.replace("_", "-")


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None: a flag that was left out is None."""
    return {name: value for name, value in values.items() if value is not None}


def add_flag(
    group: Any,
    name: str,
    says: str,
    *,
    known: Sequence[str] | Callable[[], Sequence[str]] = (),
    variable: bool = False,
    **how: Any,
) -> None:
    """Adds a flag.

    says: the help, which ends with the default of a value. known: values that a shell may offer,
    or what knows them. variable: whether an environment variable may hold its default.
    """
    if variable:
        how["action"] = _FromVariable
    action = group.add_argument(name, help=says.replace("%", "%%"), **how)
    if known:
        action.completer = partial(_offered, known)


def _offered(
    known: Sequence[str] | Callable[[], Sequence[str]], prefix: str = "", **_: object
) -> list[str]:
    values = known() if callable(known) else known
    return [value for value in values if value.startswith(prefix)]


def with_variables(text: str, args: argparse.Namespace | None) -> str:
    """A message in which values that environment variables gave are told of."""
    taken: dict[str, str] = getattr(args, "variables", {})
    named = [
        f"{name}={os.environ.get(name)}"
        for dest, name in taken.items()
        if re.search(rf"(?<![\w./]){re.escape(dest).replace('_', '[_-]')}(?![\w/])", text)
    ]
    return f"{text} ({' and '.join(named)} in the environment)" if named else text
