"""Ranks as threads of one process: for trying what several devices compute, where there is one.

Knows: a queue from each rank to each other. Does not know: models. A rank that fails says so to the
others, which raise too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

from pilotfish.config.parallel import ParallelConfig
from pilotfish.parallel.group import Group, Groups

Made = TypeVar("Made")
_FAILED = object()
"""What a rank that fails has for the others."""


class OtherRankFailedError(ConnectionError):
    """Another rank of the group has failed, or is silent."""


class ThreadTransport:
    """A `Transport` of one rank. calls: names of what was called, with the bytes it sent.

    queues: of every rank of the group, what each other has for it.
    """

    def __init__(
        self, rank: int, queues: Sequence[Sequence[SimpleQueue[Any]]], timeout_s: float
    ) -> None:
        self.rank, self._queues, self._timeout_s = rank, queues, timeout_s
        self._others = [other for other in range(len(queues)) if other != rank]
        self.calls: list[tuple[str, int]] = []

    def all_gather(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """As `Transport.all_gather`."""
        self.calls.append(("all_gather", x.nbytes))
        return self._exchanged(x)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """As `Transport.all_to_all`."""
        self.calls.append(("all_to_all", x.nbytes))
        return torch.stack([one[self.rank] for one in self._exchanged(x)])

    def all_to_all_rows(
        self, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        """As `Transport.all_to_all_rows`. Raises ValueError where other rows come than `received`
        says.
        """
        self.calls.append(("all_to_all_rows", x.nbytes))
        parts = [one[self.rank] for one in self._passed(torch.split(x.clone(), list(sent)))]
        if (counts := list(map(len, parts))) != list(received):
            raise ValueError(f"{counts} rows came; wanted {list(received)}, as was said")
        return torch.cat(parts)

    def gather(self, x: torch.Tensor, root: int) -> Sequence[torch.Tensor] | None:
        """As `Transport.gather`."""
        self.calls.append(("gather", x.nbytes))
        found = self._exchanged(x)
        return found if self.rank == root else None

    def _exchanged(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = self._passed(x.clone())
        shapes = {(tuple(one.shape), one.dtype) for one in found}
        if len(shapes) > 1:
            raise ValueError(f"ranks exchange tensors of one shape and dtype; got {shapes}")
        return [one.clone() for one in found]

    def _passed(self, own: Any) -> list[Any]:
        """What every rank has, in order: never to be written."""
        self._tell(own)
        found = {self.rank: own}
        for other in self._others:
            try:
                found[other] = self._queues[self.rank][other].get(timeout=self._timeout_s)
            except Empty:
                raise OtherRankFailedError(f"rank {other} is silent") from None
            if found[other] is _FAILED:
                self._tell(_FAILED)  # who waits for this one need not wait for the other
                raise OtherRankFailedError(f"rank {other} has failed")
        return [found[rank] for rank in sorted(found)]

    def give_up(self) -> None:
        """Lets the other ranks raise instead of waiting."""
        self._tell(_FAILED)

    def _tell(self, own: Any) -> None:
        for other in self._others:
            self._queues[other][self.rank].put(own)


def thread_groups(config: ParallelConfig, timeout_s: float = 60.0) -> list[Groups]:
    """The groups of every rank of every replica, connected."""
    size = config.tensor_parallel * config.data_parallel
    ranks = [Groups.of_rank(rank, config) for rank in range(size)]
    for name in ("tensor", "expert"):
        each: int = getattr(ranks[0], name).size
        queues = [
            [[SimpleQueue[Any]() for _ in range(each)] for _ in range(each)]
            for _ in range(size // each)
        ]
        for number, groups in enumerate(ranks):
            group: Group = getattr(groups, name)
            group.transport = ThreadTransport(group.rank, queues[number // each], timeout_s)
    return ranks


def run_ranks(ranks: Sequence[Groups], work: Callable[[Groups], Made]) -> list[Made]:
    """`work` of every rank at once, in threads; raises what the first of them raised by itself."""

    def run(groups: Groups) -> Made:
        try:
            return work(groups)
        except BaseException:
            for group in (groups.tensor, groups.expert):
                if isinstance(group.transport, ThreadTransport):
                    group.transport.give_up()
            raise

    with ThreadPoolExecutor(len(ranks)) as pool:
        running = [pool.submit(run, groups) for groups in ranks]
        errors = [error for one in running if (error := one.exception()) is not None]
    for error in errors:
        if not isinstance(error, OtherRankFailedError):
            raise error
    if errors:
        raise errors[0]
    return [one.result() for one in running]
