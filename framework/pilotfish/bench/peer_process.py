"""A side in a process of its own, as its users run it.

Knows: processes and what is sent between them. Does not know: systems, or what is timed.

In one process the sides would share what one of them tells the allocator, and its threads. What
the command line sets for our own threads is not set there.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from pilotfish import openmp
from pilotfish.bench.peers import Side
from pilotfish.bench.workloads import TokenIds
from pilotfish.errors import PilotfishError

_SECONDS_TO_END = 30


class PeerProcess:
    """A Side whose maker is called in a new process, with as many threads as this one.

    make: a function or class that can be pickled; called with directory and dtype. A program that
    makes one guards its main part (`if __name__ == "__main__"`), since the new process imports it.
    Raises PilotfishError with what the other process raised, or its exit code. A context manager.
    """

    def __init__(self, make: Callable[..., Side], directory: str, *, dtype: str) -> None:
        import torch

        context = get_context("spawn")
        self.name = getattr(make, "name", "the peer")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, make, directory, dtype, torch.get_num_threads()),
            daemon=True,
        )
        with openmp.as_the_user_set_it():
            self._process.start()
        theirs.close()
        try:
            self._ask(None)
        except BaseException:
            self.close(at_once=True)
            raise

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        rows: list[TokenIds] = self._ask((list(prompts), num_tokens))
        return rows

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process, which ends by itself when it is not at work."""
        self._pipe.close()
        self._process.join(0 if at_once else _SECONDS_TO_END)
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)

    def _ask(self, request: tuple[list[TokenIds], int] | None) -> Any:
        """None asks whether the side is made."""
        try:
            if request is not None:
                self._pipe.send(request)
            has_failed, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            hint = ": is there memory for both sides?" if code == -signal.SIGKILL else ""
            raise PilotfishError(
                f"the process of {self.name} ended with exit code {code}; wanted an answer{hint}"
            ) from error
        if has_failed:
            raise PilotfishError(f"{self.name}: {value}")
        return value


def _serve(
    pipe: Connection, make: Callable[..., Side], directory: str, dtype: str, num_threads: int
) -> None:
    """Answers until the other end is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this ends it
    torch.set_num_threads(num_threads)
    side = None
    while True:
        try:
            if side is None:
                side = make(directory, dtype=dtype)
                answer: tuple[bool, Any] = (False, None)
            else:
                answer = (False, side.generate(*pipe.recv()))
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # whatever a system may raise
            answer = (True, f"{type(error).__name__}: {error}")
        pipe.send(answer)
        if side is None:
            return
