"""Launch: what starts the ranks beside this process, whatever it is.

Knows: the launchers by name. Does not know: how any of them does it.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from time import monotonic
from typing import Any, Literal, Protocol

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.ranks.channel import Address, Channel, HungUp, Listener

_LAUNCHERS = {
    "spawn": "pilotfish.ranks.spawn:Spawn",
    "torchrun": "pilotfish.ranks.torchrun:Torchrun",
    "ray": "pilotfish.ranks.on_ray:OnRay",
}
"""Values of `ParallelConfig.distributed`, and classes made of the arguments of `launcher_of`."""
Starts = Literal["ranks", "replica", "ranks of a replica"]
"""What is started: the ranks beside this process; the process that leads a replica; the ranks
beside such a process, which is this one."""
CONNECT_S = 60.0
"""How long processes may take to start and to meet, however short the time-out is."""
_END_S = 1.0
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
"""Variables of each process that it starts."""


@attrs.define(eq=False)
class Worker(ABC):
    """A rank beside the driver's, to the driver. rank: its number.

    last_words: its exception's type, text and traceback, and whether another rank caused it.
    """

    rank: int
    channel: Channel | None = attrs.field(default=None, init=False)
    last_words: tuple[str, str, str, bool] | None = attrs.field(default=None, init=False)
    has_hung_up: bool = attrs.field(default=False, init=False)

    @abstractmethod
    def how_it_ended(self, wait_s: float = 0.0) -> str | None:
        """In words; None where it runs, for all that is known in wait_s."""

    @property
    def pid(self) -> int:
        """Its process, on its machine; 0 where it has not come yet."""
        return 0 if self.channel is None else self.channel.pid


class NoRoomError(ConfigError):
    """There is no machine with room for what was to be started, now."""


class Launcher(Protocol):
    """A way of starting the ranks of one model."""

    @property
    def host(self) -> str:
        """This machine's address that all workers reach."""
        ...

    def begin_early(self) -> None:
        """Called before it is known whether the model can be served: `end` ends what it began."""
        ...

    def launch(self, rank: int, listener: Listener, num_threads: int) -> Worker:
        """Starts a worker, which will connect to the listener if it has no channel yet.

        num_threads: unless the user set OMP_NUM_THREADS. May wait for room, until the listener is
        closed in another thread.
        """
        ...

    def pass_on(self, rank: int, address: Address, key: bytes) -> None:
        """Starts a rank of the replica whose lead it launched, and which listens there. Asked only
        where that was launched by asking its `front`.
        """
        ...

    def end(self, workers: Sequence[Worker], wait_s: float) -> None:
        """Ends all, so that nothing is left of them.

        wait_s: how long those that were told to close may take; 0 where they were not told.
        """
        ...


def threads_of_rank(parallel: ParallelConfig) -> int:
    """Threads of each rank of each replica."""
    import torch

    num_threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return num_threads
    return max(1, num_threads // (parallel.num_ranks * parallel.num_replicas))


def hang_up(channels: Sequence[Channel]) -> None:
    """Ends workers that end by themselves when their driver is gone; those of this machine that do
    not within a second are killed.
    """
    for channel in channels:
        channel.hang_up()
    deadline = monotonic() + _END_S
    while monotonic() < deadline and (left := [one for one in channels if not one.is_gone]):
        for channel in Channel.ready(left, 0.05):  # words that nobody waits for
            with suppress(HungUp, OSError):
                channel.recv()
    for channel in channels:
        if not channel.is_gone and channel.is_of_this_machine:
            with suppress(ProcessLookupError):
                os.kill(channel.pid, signal.SIGKILL)
        channel.close()


def launcher_of(
    parallel: ParallelConfig, starts: Starts = "ranks", front: Channel | None = None
) -> Launcher:
    """The one that `distributed` names. front: of a replica's lead, to who started it.

    A process that torchrun started serves here, if it is not rank 0's, and never returns. Raises
    ConfigError where ranks cannot be started so.
    """
    name = parallel.distributed
    if name == "auto":
        name = "torchrun" if all(one in os.environ for one in _OF_TORCHRUN) else "spawn"
    module, _, kind = _LAUNCHERS[name].partition(":")
    made: Any = getattr(import_module(module), kind)(parallel, starts, front)
    return made  # type: ignore[no-any-return]
