"""What the program is busy with: a line on the terminal, gone when that is done.

Knows: the line, and when it is due. Does not know: who works, or on what.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pilotfish.engine import LLM

_SILENT_S = 1.0


class StatusLine:
    """A line on stderr, after a second; none in a pipe. A context manager, which ends it.

    say: its text; "" while there is none.
    """

    def __init__(self, say: Callable[[], str]) -> None:
        self._say = say
        self._lock = Lock()
        self._due = perf_counter() + _SILENT_S
        self._is_over = not sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def look(self) -> None:
        """Writes the line anew. From any thread."""
        with self._lock:
            if not self._is_over and perf_counter() >= self._due and (text := self._say()):
                self._write(text)

    def end(self) -> None:
        """Takes the line away, for good."""
        with self._lock:
            if self._width:
                self._write("")
            self._is_over = True

    def _write(self, text: str) -> None:
        """Over what stands there, by spaces: a dumb terminal can erase in no other way."""
        text = text[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]
        sys.stderr.write(f"\r{' ' * self._width}\r{text}")
        sys.stderr.flush()
        self._width = len(text)


def reading_line(llm: LLM) -> StatusLine:
    """`reading the prompt: 512 of 2000 tokens`, of the first request that runs."""

    def say() -> str:
        for request in llm.engine.scheduler.requests[:1]:
            whole = request.num_prompt_tokens
            read = min(request.num_computed, whole)
            return f"reading the prompt: {read} of {whole} tokens"
        return ""

    return StatusLine(say)
