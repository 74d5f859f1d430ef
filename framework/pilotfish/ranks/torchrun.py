"""Torchrun: ranks as the processes that torchrun started, this one among them.

Knows: torchrun's variables and its store, what a process ends with there. Does not know: what
ranks serve.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import ConfigError, RankError, WorkerEnd
from pilotfish.ranks.channel import Address, Channel, HungUp, Listener
from pilotfish.ranks.launch import CONNECT_S, Starts, Worker, hang_up
from pilotfish.ranks.messages import encode
from pilotfish.ranks.spawn import Spawn
from pilotfish.ranks.start_up import StartUp
from pilotfish.ranks.worker import LAUNCH, end_process, is_of_others, serve

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from pilotfish.parallel.group import Groups

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOOK_S = 0.5
"""How long the end of another rank may take to be seen here, after torchrun saw it."""


class _Ranks:
    """Rank 0's channels to the other processes, which serve one model after the other. They last
    as long as this process: where one is gone, there are no ranks any more.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.channels: dict[int, Channel] = {}
        self.is_used = False
        self.leads = set[int]()  # processes that lead replicas now
        self.lock = threading.Lock()
        weakref.finalize(self, _hang_up, self.process, self.channels)

    @property
    def are_lost(self) -> bool:
        """Whether a process has ended, or this one gave all up."""
        return any(channel.is_gone for channel in self.channels.values())


def _hang_up(process: int, channels: dict[int, Channel]) -> None:
    for channel in channels.values() if os.getpid() == process else ():
        channel.hang_up()


class Given(Worker):
    """A rank that torchrun started."""

    def how_it_ended(self, wait_s: float = 0.0) -> str | None:
        """What torchrun knows of it, it says itself."""
        return "ended without a word (torchrun says how)" if self.has_hung_up else None


class Torchrun:
    """A `Launcher`, to rank 0. In every other process making it serves, and raises WorkerEnd."""

    def __init__(
        self, parallel: ParallelConfig, starts: Starts = "ranks", front: Channel | None = None
    ) -> None:
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"distributed is 'torchrun' and the environment has no {missing[0]}; wanted "
                f"torchrun --nproc-per-node {parallel.num_processes} SCRIPT, or distributed 'spawn'"
            )
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _check_size(parallel, size)
        self.host = _host()
        self._parallel, self._starts, self._front = parallel, starts, front
        self._lead: int | None = None
        self._own_lead: Spawn | None = None
        if starts == "ranks of a replica":
            return
        patience_s = max(parallel.rank_timeout, CONNECT_S)
        if rank:
            _serve_all(rank, patience_s)
        self._ranks = _ranks(self.host, size, patience_s)

    def begin_early(self) -> None:
        """Nothing: what is there, or has room, waits."""

    def launch(self, rank: int, listener: Listener, num_threads: int) -> Worker:
        """Takes the process that is there. Raises ConfigError where another model has it, RankError
        where it is no more.
        """
        if self._starts == "ranks of a replica":
            assert self._front is not None
            self._front.send(encode([(LAUNCH, (rank, listener.address, listener.key))]))
            return Given(rank)
        if self._starts == "replica":
            self._lead = self._take_lead()
            try:
                return self._launch_lead(self._lead, listener, num_threads)
            except BaseException:
                self._ranks.leads.discard(self._lead)
                raise
        if rank == 1:
            self._check_free(is_used=self._ranks.is_used or bool(self._ranks.leads))
            self._ranks.is_used = True
        return self._given(rank, rank)

    def pass_on(self, rank: int, address: Address, key: bytes) -> None:
        """Lets a process be a rank of the replica that was launched, whose lead listens there."""
        assert self._lead is not None
        told = {"address": tuple(address), "key": key, "rank": rank}
        start = StartUp(
            parallel=self._parallel, rank=rank, serve=f"{__name__}:OfReplica", options=told
        )
        self._ranks.channels[self._lead + rank].send(start.to_bytes())

    def end(self, workers: Sequence[Worker], wait_s: float) -> None:
        """Workers that were told to close wait for the next model. Others end, those of this
        machine within a second.
        """
        if not workers:
            return
        if self._starts == "ranks of a replica":
            channels = [one.channel for one in workers if one.channel is not None]
            if not wait_s:
                hang_up(channels)
            for channel in channels:
                channel.close()
            return
        if self._own_lead is not None:
            self._own_lead.end(workers, wait_s)
        ranks, places = self._ranks, range(1, self._parallel.num_processes)
        if self._lead is None:
            ranks.is_used = False
        else:
            places = range(self._lead, self._lead + self._parallel.num_ranks)
            ranks.leads.discard(self._lead)
        if not wait_s:
            hang_up([ranks.channels[place] for place in places if place])

    def _launch_lead(self, place: int, listener: Listener, num_threads: int) -> Worker:
        if place:
            return self._given(0, place)
        self._own_lead = Spawn(self._parallel)  # this process is taken: it has a lead of its own
        return self._own_lead.launch(0, listener, num_threads)

    def _given(self, rank: int, place: int) -> Given:
        worker = Given(rank)
        worker.channel = self._ranks.channels[place]
        worker.channel.give_up_after(self._parallel.rank_timeout)
        return worker

    def _check_free(self, *, is_used: bool) -> None:
        if self._ranks.are_lost:
            raise RankError(
                "the processes of torchrun ended with the model before; wanted a new torchrun"
            )
        if is_used:
            raise ConfigError(
                "another model has the processes of torchrun; wanted that one closed first "
                "(llm.close(), or with)"
            )

    def _take_lead(self) -> int:
        """The rank among torchrun's of one that leads no replica."""
        ranks, size = self._ranks, self._parallel.num_processes
        with ranks.lock:
            free = set(range(0, size, self._parallel.num_ranks)) - ranks.leads
            self._check_free(is_used=ranks.is_used or not free)
            taken = min(free)
            ranks.leads.add(taken)
        return taken


class OfReplica:
    """What another process of torchrun serves: the lead of its replica, as one of its ranks."""

    def __init__(self, start: StartUp, groups: Groups) -> None:
        del groups
        self._told = start.options

    def run(self, front: Channel) -> None:
        """Until that lead is done with it, or is gone."""
        del front
        with suppress(HungUp):
            serve(Channel.connect(**self._told))


def _check_size(parallel: ParallelConfig, size: int) -> None:
    if parallel.num_processes == size:
        return
    if parallel.num_replicas > 1:
        raise ConfigError(
            f"data_parallel is {parallel.num_replicas} and tensor_parallel {parallel.num_ranks}, "
            f"and torchrun started {size} processes; wanted torchrun --nproc-per-node "
            f"{parallel.num_processes}, or distributed 'spawn'"
        )
    raise ConfigError(
        f"tensor_parallel is {parallel.num_ranks} and torchrun started {size} processes; "
        f"wanted tensor_parallel {size}, torchrun --nproc-per-node {parallel.num_ranks}, "
        "or distributed 'spawn' for a model of each process's own"
    )


@cache
def _store(patience_s: float) -> Store:
    """Torchrun's own, for what ranks say before they have met."""
    from torch.distributed import (  # type: ignore[attr-defined]
        PrefixStore,
        rendezvous,
    )

    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=patience_s)))
    return PrefixStore(f"pilotfish {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _host() -> str:
    """This machine's address that the other ranks reach: the one that leads to rank 0's machine."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return "127.0.0.1"
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, *_, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


@cache
def _ranks(host: str, size: int, patience_s: float) -> _Ranks:
    """Of rank 0's process: meets the others, once."""
    ranks, listener = _Ranks(), Listener(host)
    told = json.dumps([listener.address, listener.key.hex()])
    _store(patience_s).set("driver", told)
    deadline = monotonic() + patience_s
    while len(ranks.channels) < size - 1:
        found = listener.accept(0.1, patience_s)
        if found is not None:
            ranks.channels[found[0]] = found[1]
        elif monotonic() > deadline:
            missing = [str(one) for one in range(1, size) if one not in ranks.channels]
            raise RankError(
                f"rank {' and '.join(missing)} of {size} did not come for {patience_s:g} s "
                "(rank_timeout); wanted every process of torchrun to make the LLM"
            )
    listener.close()
    # Where one process ends, torchrun ends the others: this one has something to say first.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, partial(_on_term, ranks))
    return ranks


def _on_term(ranks: _Ranks, number: int, frame: Any) -> None:
    if os.getpid() == ranks.process:
        Channel.ready([one for one in ranks.channels.values() if not one.is_gone], _LOOK_S)
    if os.getpid() != ranks.process or not ranks.are_lost:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _serve_all(rank: int, patience_s: float) -> NoReturn:
    """Of every other process: one model after the other, until rank 0's process ends."""
    store = _store(patience_s)
    try:
        store.wait(["driver"])
    except RuntimeError as error:
        raise RankError(
            f"rank 0 made no LLM for {patience_s:g} s (rank_timeout); wanted every process of "
            "torchrun to make one"
        ) from error
    address, key = json.loads(store.get("driver"))
    channel = Channel.connect(tuple(address), bytes.fromhex(key), rank)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    try:
        while True:
            serve(channel)
            gc.collect()
    except HungUp:
        raise WorkerEnd(0) from None
    except BaseException as error:
        # Torchrun ends all as soon as this process ends: not before rank 0 has heard.
        with suppress(HungUp, OSError):
            channel.recv()
        end_process(0 if is_of_others(error) else 1)
