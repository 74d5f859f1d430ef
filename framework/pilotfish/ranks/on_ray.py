"""On Ray: workers as actors of a Ray cluster, on whichever of its machines has room.

Knows: Ray's calls. Does not know: what ranks serve.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from time import monotonic
from typing import Any

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.ranks.channel import Address, Channel, HungUp, Listener
from pilotfish.ranks.launch import CONNECT_S, NoRoomError, Starts, Worker, hang_up
from pilotfish.ranks.worker import end_process, serve

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_KNOCK_S = 10.0
_LOOK_S = 1.0
"""How often it is looked whether the room is still wanted."""


class Rank:
    """What an actor is made of."""

    def serve(self, path: Sequence[str], address: Address, key: bytes, rank: int) -> None:
        """Serves one model. path: the driver's `sys.path`, for plugins that are found by it."""
        sys.path += [one for one in path if one not in sys.path]
        import_module("pilotfish.ranks.start_up")  # torch: who has connected answers at once
        try:
            serve(Channel.connect(address, key, rank))
        except HungUp:
            pass
        except BaseException:  # the driver was told; other ranks must find this one gone
            end_process(1)


@attrs.define(eq=False)
class Actor(Worker):
    """A rank in an actor. serving: what its call will return, to Ray."""

    actor: Any
    serving: Any

    def how_it_ended(self, wait_s: float = 0.0) -> str | None:
        """In Ray's words, where it has some already."""
        import ray

        ended, _ = ray.wait([self.serving], timeout=wait_s)
        if ended:
            try:
                ray.get(self.serving)
            except Exception as error:
                said = " ".join(str(error).split())
                return f"ended with its Ray actor ({type(error).__name__}: {said:.400})"
        if ended or self.has_hung_up:
            return "ended without a word: its Ray actor, or the node that it was on"
        return None


class _Cluster:
    """This process's connection to Ray. users: launchers that need it. is_ours: whether the last of
    them ends it, and with it a cluster that was started for them.
    """

    def __init__(self) -> None:
        self.users = 0
        self.is_ours = False
        self._lock = Lock()

    def begin(self, num_cpus: int) -> str:
        """Connects, and returns this machine's address that all nodes reach."""
        import ray

        with self._lock:
            self._connect(num_cpus)
            self.users += 1
        return str(ray.util.get_node_ip_address())

    def end(self) -> None:
        """Of one user."""
        import ray

        with self._lock:
            self.users -= 1
            if self.is_ours and not self.users:
                self.is_ours = False
                ray.shutdown()

    def _connect(self, num_cpus: int) -> None:
        import ray

        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS", "")
            try:
                _knock(address)
                ray.init(address="auto", **_QUIET)
            except OSError as error:
                if address:
                    raise ConfigError(
                        f"RAY_ADDRESS is {address!r} and no Ray cluster answers there ({error}); "
                        "wanted HOST:PORT of its head node"
                    ) from error
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_QUIET)
            self.is_ours = True


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), _KNOCK_S).close()


_CLUSTER = _Cluster()


class OnRay:
    """A `Launcher`: of one actor for each worker, in one placement group.

    All ranks of a replica are actors. The group is reserved with its lead, and its other ranks are
    put into the same.
    """

    def __init__(
        self, parallel: ParallelConfig, starts: Starts = "ranks", front: Channel | None = None
    ) -> None:
        del front
        if find_spec("ray") is None:
            raise ConfigError(
                "distributed is 'ray' and ray is not installed; wanted "
                '`pip install "pilotfish[ray]"`'
            )
        self._starts = starts
        self._first_rank = 1 if starts == "ranks" else 0
        self._num_actors = parallel.num_ranks - self._first_rank
        self._num_processes = self._num_actors * parallel.num_replicas
        self._patience_s = max(parallel.rank_timeout, CONNECT_S)
        self._group: Any = None

    @cached_property
    def host(self) -> str:
        """Connects to Ray first: the cluster of RAY_ADDRESS, one that runs here, or a new one."""
        import torch

        num_cpus = max(os.cpu_count() or 1, self._num_processes * torch.get_num_threads())
        return _CLUSTER.begin(num_cpus)

    def begin_early(self) -> None:
        """Nothing: what is there, or has room, waits."""

    def launch(self, rank: int, listener: Listener, num_threads: int) -> Actor:
        """Raises NoRoomError where the cluster has no room."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if self._group is None:
            is_inside = self._starts == "ranks of a replica"
            group = ray.util.get_current_placement_group() if is_inside else None
            self._group = group or self._reserve(num_threads, listener)
        where = PlacementGroupSchedulingStrategy(self._group, rank - self._first_rank)
        # Ray sets OMP_NUM_THREADS to num_cpus.
        kind: Any = ray.remote(Rank)
        actor = kind.options(num_cpus=num_threads, scheduling_strategy=where).remote()
        told = [*map(str, sys.path)], listener.address, listener.key, rank
        return Actor(rank, actor, actor.serve.remote(*told))

    def pass_on(self, rank: int, address: Address, key: bytes) -> None:
        """Never asked: a lead starts its ranks itself."""
        raise NotImplementedError(rank, address, key)

    def end(self, workers: Sequence[Worker], wait_s: float) -> None:
        """Ends the actors, gives their room back, and ends a cluster that was started for them."""
        if vars(self).pop("host", None) is None:  # it never connected, or has ended
            return
        import ray

        hang_up([one.channel for one in workers if one.channel is not None])
        if ray.is_initialized():  # at the end of Python it may not be, and has ended all
            with suppress(Exception):  # of a cluster that is gone itself
                for one in workers:
                    if isinstance(one, Actor):
                        ray.kill(one.actor)
                if self._group is not None and self._starts != "ranks of a replica":
                    ray.util.remove_placement_group(self._group)
        _CLUSTER.end()

    def _reserve(self, num_threads: int, listener: Listener) -> Any:
        import ray

        bundles = [{"CPU": num_threads}] * self._num_actors
        group = ray.util.placement_group(bundles, strategy="PACK")
        deadline = monotonic() + self._patience_s
        while not group.wait(_LOOK_S):
            if monotonic() < deadline and not listener.is_closed:
                continue
            free = ray.available_resources().get("CPU", 0)
            ray.util.remove_placement_group(group)
            raise NoRoomError(
                f"the Ray cluster has {free:g} CPUs free and no room for {self._num_actors} ranks "
                f"of {num_threads} CPUs for {self._patience_s:g} s (rank_timeout); wanted a node "
                "more, or OMP_NUM_THREADS lower"
            )
        return group
