"""Spawn: workers as processes that this one starts, and ends.

Knows: their environment, their standard streams. Does not know: what they serve.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import IO

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.ranks.channel import Listener
from pilotfish.ranks.launch import Worker

BOOT = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
told = json.loads(sys.stdin.buffer.readline())
sys.path[:] = told["path"]
from pilotfish.ranks.worker import main
main(tuple(told["address"]), bytes.fromhex(told["key"]), told["rank"])
"""
"""The path comes first, since pilotfish itself may be found by it alone."""
_TAIL_BYTES = 2000
_TERMINATE_S, _KILL_S = 0.5, 5.0
"""How long a process may take to end when it is told to, and when it is killed."""


@attrs.define(eq=False)
class Process(Worker):
    """errors: a file without a name, of what it printed."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def how_it_ended(self, wait_s: float = 0.0) -> str | None:
        """With the end of what it printed."""
        try:
            code = self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        if code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        printed = self.errors.read().decode(errors="replace").strip()
        return f"ended with exit code {code}" + (f" and printed last: {printed}" if printed else "")

    @property
    def pid(self) -> int:
        """From the start."""
        return self.process.pid


class Spawn:
    """A `Launcher`."""

    host = "127.0.0.1"

    def __init__(self, parallel: ParallelConfig) -> None:
        del parallel

    def launch(self, rank: int, listener: Listener, num_threads: int) -> Process:
        """The key goes through its standard input, which others cannot read as they can arguments;
        the same pipe tells it when this process is gone.
        """
        environment = {"OMP_NUM_THREADS": str(num_threads), **os.environ}
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", BOOT, f"pilotfish-rank-{rank}"],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env=environment,
            )
        except BaseException:
            errors.close()
            raise
        told = {
            "path": [*map(str, sys.path)],
            "address": listener.address,
            "key": listener.key.hex(),
            "rank": rank,
        }
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, as will be seen
            process.stdin.write(json.dumps(told).encode() + b"\n")
            process.stdin.flush()
        return Process(rank, process, errors)

    def end(self, workers: Sequence[Worker], wait_s: float) -> None:
        """Those that have not ended by themselves are told to, and then are killed. Nothing of them
        is left, also where an interrupt cuts the patience short.
        """
        processes = [one for one in workers if isinstance(one, Process)]
        try:
            _wait(processes, wait_s)
            for worker in _running(processes):
                worker.process.terminate()
            _wait(processes, _TERMINATE_S)
        finally:
            for worker in _running(processes):
                worker.process.kill()
            _wait(processes, _KILL_S)
            for worker in processes:
                if worker.channel is not None:
                    worker.channel.close()
                with suppress(BrokenPipeError):
                    if worker.process.stdin is not None:
                        worker.process.stdin.close()
                worker.errors.close()


def _running(workers: Sequence[Process]) -> list[Process]:
    return [worker for worker in workers if worker.process.poll() is None]


def _wait(workers: Sequence[Process], patience_s: float) -> None:
    deadline = monotonic() + patience_s
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - monotonic()))
