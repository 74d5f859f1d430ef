"""The argument parser: one line for a mistake, with the name that was probably meant.

Knows: argparse. Does not know: any verb or flag.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pilotfish.errors import UserError
from pilotfish.nearest import did_you_mean


class UsageError(UserError):
    """The command line itself is wrong: unknown verb or flag, missing or malformed value."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing its usage and exiting.

    Verbs' parsers are of this class too: `add_subparsers` makes parsers of its parent's class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and refuses what is left over: here this parser's own flags are known."""
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self._refuse(extra)
        return found, extra

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _refuse(self, extra: Sequence[str]) -> NoReturn:
        for word in extra:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                self.error(
                    f"unknown flag {flag!r}{did_you_mean(flag, self._option_string_actions)}"
                )
        self.error(f"unexpected argument {extra[0]!r}")
