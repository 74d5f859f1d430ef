"""A side in a process of its own, as its users run it.

Knows: processes and what is sent between them. Does not know: systems, or what is timed.

In one process the sides would share what one of them tells the allocator, and its threads. What
the command line sets for our own threads is not set there. Nothing of ours is loaded there but
what this file imports, so that a peer without torch has a process without torch.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pilotfish.bench.measure import timed
from pilotfish.bench.memory import peak_bytes
from pilotfish.bench.workloads import TokenIds
from pilotfish.errors import PilotfishError
from pilotfish.platform import openmp

if TYPE_CHECKING:
    from pilotfish.bench.peers import Side

_SECONDS_TO_END = 30


class PeerProcess:
    """A Side whose maker is called in a new process, with as many threads as this one.

    make: a function or class that can be pickled; called with directory, dtype and num_threads. A
    program that makes one guards its main part (`if __name__ == "__main__"`), since the new process
    imports it. about: what the side says of itself.
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
            self._ask("load", [], 0)
            self.about: str = self._ask("about")
        except BaseException:
            self.close(at_once=True)
            raise

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        rows: list[TokenIds] = self._ask("generate", list(prompts), num_tokens)
        return rows

    def load_again(self, prompts: Sequence[TokenIds], num_tokens: int) -> float:
        """Drops the side and makes another: seconds until it has generated, or is there for 0."""
        seconds: float = self._ask("load", list(prompts), num_tokens)
        return seconds

    def peak_bytes(self) -> int:
        """The most memory that the process had."""
        num_bytes: int = self._ask("peak_bytes")
        return num_bytes

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

    def _ask(self, what: str, *args: Any) -> Any:
        """The answer of a method of _Server."""
        try:
            self._pipe.send((what, args))
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


class _Server:
    """The side in the other process, and what can be asked of it."""

    def __init__(self, make: Callable[[], Side]) -> None:
        self._make = make
        self._side: Side | None = None

    def load(self, prompts: Sequence[TokenIds], num_tokens: int) -> float:
        self._side = None  # memory of one is enough

        def load() -> None:
            self._side = self._make()
            if num_tokens:
                self._side.generate(prompts, num_tokens)

        return timed(load)[0]

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        assert self._side is not None
        return self._side.generate(prompts, num_tokens)

    def about(self) -> str:
        return getattr(self._side, "about", "")

    def peak_bytes(self) -> int:
        return peak_bytes()


def _serve(
    pipe: Connection, make: Callable[..., Side], directory: str, dtype: str, num_threads: int
) -> None:
    """Answers until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this ends it
    server = _Server(partial(make, directory, dtype=dtype, num_threads=num_threads))
    while True:
        try:
            what, args = pipe.recv()
            answer: tuple[bool, Any] = (False, getattr(server, what)(*args))
        except (EOFError, ConnectionError):
            return
        except Exception as error:  # whatever a system may raise
            answer = (True, f"{type(error).__name__}: {error}")
        pipe.send(answer)
