"""A small "model" whose ranks gather from one another, and can be made to fail in every way."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Groups
from pilotfish.ranks.start_up import StartUp

SERVE = "ranks.fake:make"


class Fake:
    """One rank of it. calls: what was made so far."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.calls: list[Any] = []

    def known(self, key: Any) -> Any:
        return ("known", key)

    def note(self, *values: Any) -> None:
        self.calls.append(values)

    def execute(self, x: torch.Tensor) -> torch.Tensor:
        """[n] -> [ranks, n]: every rank's x plus its number."""
        return torch.stack(list(all_gather(self.groups.tensor, x + self.groups.tensor.rank)))

    def count(self, x: torch.Tensor) -> torch.Tensor:
        """[ranks], how many calls each rank noted."""
        return torch.cat(list(all_gather(self.groups.tensor, torch.tensor([len(self.calls)]))))

    def experts(self, x: torch.Tensor) -> torch.Tensor:
        """[ranks, n]: the numbers of those that each rank splits experts with."""
        own = torch.cat(list(all_gather(self.groups.expert, x + self.groups.tensor.rank)))
        return torch.stack(list(all_gather(self.groups.tensor, own)))

    def threads(self, x: torch.Tensor) -> torch.Tensor:
        own = torch.tensor([torch.get_num_threads()])
        return torch.cat(list(all_gather(self.groups.tensor, own)))

    def execute_but(self, x: torch.Tensor, rank: int, how: str) -> torch.Tensor:
        """As `execute`, but one rank fails before it takes part."""
        if self.groups.tensor.rank == rank:
            fail(how)
        return self.execute(x)


def fail(how: str) -> None:
    if how == "raise":
        raise ValueError("planted")
    if how == "raise EOFError":
        raise EOFError("planted")
    if how == "exit":
        print("printed before the end")
        os._exit(3)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    if how.startswith("sleep"):
        time.sleep(60.0 if how == "sleep long" else 1.0)


def make(start: StartUp, groups: Groups) -> Fake:
    rank, how = start.options.get("fail", (0, ""))
    if rank == start.rank:
        fail(how)
    return Fake(groups)
