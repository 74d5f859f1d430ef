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
from typing import IO, Any

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.ranks.channel import Address, Channel, Listener
from pilotfish.ranks.launch import Starts, Worker, threads_of_rank

BOOT = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from pilotfish.ranks.worker import import_early, main
import_early()
if told := sys.stdin.buffer.readline():
    told = json.loads(told)
    main(tuple(told["address"]), bytes.fromhex(told["key"]), told["rank"])
"""
"""The path comes first, since pilotfish itself may be found by it alone; then nothing, where the
process is let go of before it is needed.
"""
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

    def __init__(
        self, parallel: ParallelConfig, starts: Starts = "ranks", front: Channel | None = None
    ) -> None:
        del starts, front
        self._parallel = parallel
        self._early: list[Process] = []

    def begin_early(self) -> None:
        """Starts the ranks' processes, which import torch meanwhile and wait to be launched."""
        is_one = self._parallel.num_replicas == 1  # else each replica starts its own
        for rank in range(1, self._parallel.num_ranks) if is_one else ():
            self._early.append(_start(rank, threads_of_rank(self._parallel)))

    def launch(self, rank: int, listener: Listener, num_threads: int) -> Process:
        """The key goes through its standard input, which others cannot read as they can arguments;
        the same pipe tells it when this process is gone.
        """
        worker = self._early.pop(0) if self._early else _start(rank, num_threads)
        _tell(worker, {"address": listener.address, "key": listener.key.hex(), "rank": rank})
        return worker

    def pass_on(self, rank: int, address: Address, key: bytes) -> None:
        """Never asked: a lead starts its ranks itself."""
        raise NotImplementedError(rank, address, key)

    def end(self, workers: Sequence[Worker], wait_s: float) -> None:
        """Those that have not ended by themselves are told to, and then are killed. Nothing of them
        is left, also where an interrupt cuts the patience short.
        """
        early, self._early = self._early, []
        processes = [*(one for one in workers if isinstance(one, Process)), *early]
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


def _start(rank: int, num_threads: int) -> Process:
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
    worker = Process(rank, process, errors)
    _tell(worker, [*map(str, sys.path)])
    return worker


def _tell(worker: Process, line: Any) -> None:
    stdin = worker.process.stdin
    assert stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, as will be seen
        stdin.write(json.dumps(line).encode() + b"\n")
        stdin.flush()


def _running(workers: Sequence[Process]) -> list[Process]:
    return [worker for worker in workers if worker.process.poll() is None]


def _wait(workers: Sequence[Process], patience_s: float) -> None:
    deadline = monotonic() + patience_s
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - monotonic()))
