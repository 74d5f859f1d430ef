"""A terminal for tests: a program runs in it, keys are typed, and its screen is looked at."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Self

import pexpect
import pyte

from support import forked

PATIENCE_S = 120.0
"""For a machine that many share; nothing is ever waited for longer than it takes."""


class Terminal:
    """A program of Python in a pseudo-terminal with an emulator behind it. A context manager.

    raw: all that the program wrote, escape sequences included.
    """

    def __init__(
        self, *arguments: str, rows: int = 24, columns: int = 80, **settings: str | None
    ) -> None:
        sizes = {"COLUMNS": None, "LINES": None}  # of another terminal, if there are any
        env = {"TERM": "xterm-256color", **os.environ, **forked.SETTINGS, **sizes, **settings}
        self._child = pexpect.spawn(
            str(forked.programs() / "python"),
            list(arguments),
            env={name: value for name, value in env.items() if value is not None},
            dimensions=(rows, columns),
            encoding="utf-8",
        )
        self._child.delaybeforesend = None
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        self.raw = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._child.close(force=True)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without blanks at the ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def line(self) -> str:
        """The line that the cursor is on."""
        return self.lines[self._screen.cursor.y]

    @property
    def above(self) -> str:
        """The last line above the cursor's that is not empty."""
        return next((line for line in reversed(self.lines[: self._screen.cursor.y]) if line), "")

    @property
    def echoes(self) -> bool:
        """Whether the terminal itself shows what is typed."""
        return bool(self._child.getecho())

    def codes(self, final: str) -> list[str]:
        """Parameters of all escape sequences with this last letter; "m" sets colors."""
        return re.findall(rf"\x1b\[([0-9;?]*){final}", self.raw)

    def type(self, keys: str) -> None:
        """Types; \\r is Enter, \\x03 Ctrl-C, \\x04 Ctrl-D, \\x1b Esc."""
        self._child.send(keys)

    def paste(self, text: str) -> None:
        """As a terminal sends it to a program that has asked for marks around it."""
        assert self.raw.rfind("\x1b[?2004h") > self.raw.rfind("\x1b[?2004l")
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def resize(self, rows: int, columns: int) -> None:
        """The program gets SIGWINCH."""
        gone = max(0, self._screen.lines - rows)  # pyte takes them at the top, and not the cursor
        self._screen.resize(rows, columns)
        self._screen.cursor.y = max(0, self._screen.cursor.y - gone)
        self._screen.cursor.x = min(self._screen.cursor.x, columns - 1)
        self._child.setwinsize(rows, columns)

    def read(self) -> bool:
        """Takes what the program has written, for a moment; False after its end."""
        try:
            text = self._child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += text
        self._stream.feed(text)
        return True

    def wait(self, fits: Callable[[Terminal], bool]) -> None:
        """Until the screen fits."""
        end = time.monotonic() + PATIENCE_S
        while not fits(self):
            is_there = self.read()
            seen = "\n".join(self.lines)
            assert is_there or fits(self), f"the program has ended:\n{seen}"
            assert time.monotonic() < end, f"this is all that came:\n{seen}\n{self.raw[-500:]!r}"

    def end(self) -> int:
        """Reads up to the program's end; its exit code."""
        end = time.monotonic() + PATIENCE_S
        while self.read():
            assert time.monotonic() < end, "\n".join(self.lines)
        code = self._child.wait()
        assert code is not None
        return code
