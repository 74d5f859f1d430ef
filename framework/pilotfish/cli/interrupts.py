"""Ctrl-C: held back while packages are imported, and one for one answer.

Knows: the signal, and what must be imported whole. Does not know: verbs.
An import that was cut off stays half done: torch swallows an interrupt of its import of numpy, and
fails by that much later.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def import_whole() -> None:
    """Imports numpy and torch. Raises KeyboardInterrupt when they are there, if Ctrl-C came."""
    import_module("numpy")  # by itself: an exception in it is seen here, and not by torch
    with interrupts_held():
        import_module("torch")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within it Ctrl-C waits for its end. Only where Python's own handler would raise it."""
    held: list[int] = []
    with _handled_by(lambda number, frame: held.append(number)):
        yield
    if held:
        raise KeyboardInterrupt


class Interrupts:
    """Ctrl-C while an answer is made: raises KeyboardInterrupt once, since impatience cuts no more.

    waits: whether the first one raises nothing, and is for him to see who looks at `has_come`: an
    engine that is left between two passes forgets nothing. A second one does not wait.
    """

    def __init__(self) -> None:
        self.waits = self.has_come = self._has_raised = False

    def handle(self, number: int, frame: object) -> None:
        """The handler of the signal."""
        waits, self.has_come = self.waits and not self.has_come, True
        if not waits and not self._has_raised:
            self._has_raised = True
            raise KeyboardInterrupt


@contextmanager
def interrupts_of_an_answer() -> Iterator[Interrupts]:
    """Within it Ctrl-C does as `Interrupts` says. Only where Python's own handler would raise."""
    interrupts = Interrupts()
    with _handled_by(interrupts.handle):
        yield interrupts


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within it Ctrl-C calls the handler. Only where Python's own handler would raise."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
