"""Ctrl-C while packages are imported: held back, since an import that was cut off stays half done.

Knows: the signal, and what must be imported whole. Does not know: verbs.
torch swallows an interrupt of its import of numpy, and fails by that much later.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


def import_whole() -> None:
    """Imports numpy and torch. Raises KeyboardInterrupt when they are there, if Ctrl-C came."""
    import_module("numpy")  # by itself: an exception in it is seen here, and not by torch
    with interrupts_held():
        import_module("torch")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within it Ctrl-C waits for its end. Only where Python's own handler would raise it."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_ours:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt
