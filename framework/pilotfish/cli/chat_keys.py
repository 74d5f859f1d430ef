"""The keyboard while the program is busy: nothing is echoed, and what is typed is kept.

Knows: the terminal's modes and what keys send. Does not know: prompts or answers.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Self

try:
    import termios
except ImportError:  # Windows, where keys that are typed ahead wait for the prompt
    termios = None  # type: ignore[assignment]

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
"""What arrows and the like send, and what stands around a pasted text."""
_TICK_S = 0.1
_CTRL_C = b"\x03"


class TypedKeys:
    """Takes the echo from the terminal until it is closed. A context manager.

    Ctrl-C stays a signal, and becomes one where it came too early for that. fd: of the terminal;
    None where keys come from elsewhere, and nothing is done.
    """

    def __init__(self, fd: int | None) -> None:
        self.fd = None if termios is None else fd
        self._before: list[Any] | None = None
        self._typed = b""

    def __enter__(self) -> Self:
        if self.fd is not None:
            self._before = termios.tcgetattr(self.fd)
            self._hush()
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd is not None and self._before is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)

    @contextmanager
    def echoed(self) -> Iterator[None]:
        """Within it the terminal is as it was, for a reader that asks it to echo."""
        self.__exit__()
        try:
            yield
        finally:
            self._hush()

    def _hush(self) -> None:
        if self.fd is not None:
            quiet = termios.tcgetattr(self.fd)
            quiet[3] &= ~(termios.ECHO | termios.ICANON)
            quiet[3] |= termios.NOFLSH  # or Ctrl-C would drop what nobody has read yet
            termios.tcsetattr(self.fd, termios.TCSANOW, quiet)

    def keep(self) -> None:
        """Keeps what has been typed."""
        while self.fd is not None and select.select([self.fd], [], [], 0)[0]:
            try:
                typed = os.read(self.fd, 65536)
            except OSError:
                return
            _, interrupt, after = typed.rpartition(_CTRL_C)
            if interrupt:  # typed while an editor had the terminal, and so no signal yet
                self._typed = after
                os.kill(os.getpid(), signal.SIGINT)
            else:
                self._typed += typed
            if not typed:  # the terminal is gone
                return

    def take(self) -> str:
        """The text that was typed since the last call, as an editor would have taken it."""
        typed, self._typed = self._typed, b""
        return edited(typed.decode("utf-8", errors="ignore"))


def edited(keys: str) -> str:
    """The text that keys make: backspaces are done, and what else moves or means is dropped."""
    text = list[str]()
    for key in _SEQUENCE.sub("", keys).replace("\r", "\n"):
        if key in "\x7f\b":
            del text[-1:]
        elif key in "\x15\x03":  # Ctrl-U, Ctrl-C
            text.clear()
        elif key in "\n\t" or key.isprintable():
            text.append(key)
    return "".join(text).strip("\n")


class Meanwhile:
    """A thread that keeps what is typed, and looks at the work ten times a second.

    look: what it calls. A context manager; the thread ends with it.
    """

    def __init__(self, keys: TypedKeys, look: Callable[[], None]) -> None:
        self._keys = keys
        self._look = look
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="pilotfish-keys", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(_TICK_S):
            self._keys.keep()
            self._look()
        self._keys.keep()
