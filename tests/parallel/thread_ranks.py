"""Ranks of an LLM as threads of this process: everything of `pilotfish.ranks` but processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import pytest

from pilotfish.loading.prepared import Prepared
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import OtherRankFailedError, thread_groups
from pilotfish.ranks import driver
from pilotfish.ranks.messages import Call, Key, decode, encode
from pilotfish.ranks.serve import Served, make_model
from pilotfish.ranks.spawn import Spawn
from pilotfish.ranks.start_up import StartUp
from pilotfish.state import StateManager

T = TypeVar("T")


class ThreadRanks:
    """As `Ranks`; calls: how many passes and the like were told."""

    def __init__(self, ranks: list[Groups]) -> None:
        self.groups = ranks[0]
        self.log: list[Call] = []
        self.keys: dict[int, Key] = {}
        self.workers: list[Served] = []
        self.calls: list[str] = []
        self._pool = ThreadPoolExecutor(len(ranks))

    def call(self, name: str, arguments: tuple[Any, ...], here: Callable[[], T]) -> T:
        message = bytearray(encode([*self.log, (name, arguments)], self.keys))
        self.log.clear()
        self.calls.append(name)
        told = [self._pool.submit(_serve, worker, message) for worker in self.workers]
        try:
            made = here()
        except BaseException as error:
            self._give_up()
            errors = [one.exception() for one in told]
            found = [e for e in errors if e is not None and not isinstance(e, OtherRankFailedError)]
            raise (found[0] if found else error) from error
        for one in told:
            one.result()
        return made

    @property
    def proposers(self) -> list[Any]:
        """Of the ranks beside the first: their shards of the drafter."""
        return [worker.proposer for worker in self.workers]

    def _give_up(self) -> None:
        for group in (self.groups.tensor, self.groups.expert):
            if group.transport is not None:
                group.transport.give_up()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._pool.shutdown()


def _serve(worker: Served, message: bytearray) -> None:
    for method, arguments in decode(message, worker.known, worker.device):
        getattr(worker, method)(*arguments())


def load_on_threads(
    prepared: Prepared, options: Mapping[str, Any], counted: Any, launcher: object
) -> tuple[Prepared, StateManager, Any, Any]:
    parallel = prepared.pipeline_config.parallel
    connected = thread_groups(parallel)
    for name in ("tensor", "expert"):
        getattr(prepared.groups, name).transport = getattr(connected[0], name).transport
    ranks = ThreadRanks(connected)
    whole, state, proposer = driver.load_here(prepared, cast(Any, ranks), counted)
    for rank, groups in enumerate(connected[1:], start=1):
        start = StartUp(
            parallel=parallel,
            rank=rank,
            store=("", 0),
            options=options,
            memory_plan=prepared.memory_plan,
        )
        ranks.workers.append(make_model(start, groups))
    return whole, state, ranks, proposer


@contextmanager
def ranks_are_threads() -> Iterator[None]:
    """LLMs that are made inside have threads for ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "load_on_ranks", load_on_threads)
        patch.setattr(Spawn, "begin_early", lambda _: None)  # each process would import torch
        yield
