"""How much of a long prompt has been read: a line on the terminal, gone when the answer comes.

Knows: the engine's requests and the line. Does not know: who asked.
"""

from __future__ import annotations

import os
import sys
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfish.engine import LLM

_SILENT_S = 1.0


class ReadingLine:
    """`reading the prompt: 512 of 2000 tokens` on stderr, after a second; none in a pipe."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._lock = Lock()
        self._due = perf_counter() + _SILENT_S
        self._is_over = not sys.stderr.isatty()
        self._width = 0

    def look(self) -> None:
        """Writes the line anew. From any thread."""
        with self._lock:
            if self._is_over or perf_counter() < self._due:
                return
            for request in self._llm.engine.scheduler.requests[:1]:
                whole = request.num_prompt_tokens
                read = min(request.context.num_computed, whole)
                self._write(f"reading the prompt: {read} of {whole} tokens")

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
