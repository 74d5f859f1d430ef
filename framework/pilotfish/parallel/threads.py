"""Ranks as threads of one process: for trying what several devices compute, where there is one.

Knows: one slot a rank and a barrier. Does not know: models. A rank that fails breaks the barrier,
so the others raise too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from pilotfish.config.parallel import ParallelConfig
from pilotfish.parallel.group import Groups

Made = TypeVar("Made")


class _Exchange:
    """What the threads of one group have in common."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.sent: list[torch.Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=timeout_s)


class ThreadTransport:
    """A `Transport` of one rank. calls: names of what was called, with the bytes it sent."""

    def __init__(self, rank: int, exchange: _Exchange) -> None:
        self.rank, self._exchange = rank, exchange
        self.calls: list[tuple[str, int]] = []

    def all_gather(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """As `Transport.all_gather`."""
        self.calls.append(("all_gather", x.nbytes))
        return self._exchanged(x)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """As `Transport.all_to_all`."""
        self.calls.append(("all_to_all", x.nbytes))
        return torch.stack([one[self.rank] for one in self._exchanged(x)])

    def gather(self, x: torch.Tensor, root: int) -> Sequence[torch.Tensor] | None:
        """As `Transport.gather`."""
        self.calls.append(("gather", x.nbytes))
        found = self._exchanged(x)
        return found if self.rank == root else None

    def _exchanged(self, x: torch.Tensor) -> list[torch.Tensor]:
        held = self._exchange
        held.sent[self.rank] = x.clone()
        held.barrier.wait()
        shapes = {(tuple(one.shape), one.dtype) for one in held.sent if one is not None}
        found = [one.clone() for one in held.sent if one is not None]
        held.barrier.wait()
        if len(shapes) > 1:
            raise ValueError(f"ranks exchange tensors of one shape and dtype; got {shapes}")
        return found

    def give_up(self) -> None:
        """Lets the other ranks raise instead of waiting."""
        self._exchange.barrier.abort()


def thread_groups(config: ParallelConfig, timeout_s: float = 60.0) -> list[Groups]:
    """The groups of every rank, connected."""
    experts = config.num_expert_ranks
    ranks = [Groups.of_rank(rank, config) for rank in range(config.num_ranks)]
    tensor = _Exchange(config.tensor_parallel, timeout_s)
    expert = [_Exchange(experts, timeout_s) for _ in range(config.num_ranks // experts)]
    for rank, groups in enumerate(ranks):
        groups.tensor.transport = ThreadTransport(groups.tensor.rank, tensor)
        groups.expert.transport = ThreadTransport(groups.expert.rank, expert[rank // experts])
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
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if errors:
        raise errors[0]
    return [one.result() for one in running]
