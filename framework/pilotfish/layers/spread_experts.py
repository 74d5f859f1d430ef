"""SpreadExperts: experts that the ranks of one replica share.

Knows: that all of them have the same rows. Does not know: how experts compute.
Axis letters: T packed tokens, D model width, R rows sorted by expert.
"""

from __future__ import annotations

import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.grouped_linear import RowGroups
from pilotfish.layers.experts import Experts
from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Group
from pilotfish.parallel.traffic import Collective, PassRows


class SpreadExperts(Experts):
    """Experts that the ranks of a group share: each runs its own, and all get every row's results.

    Every rank sorts the same rows, so it knows what the others send.
    """

    plan = None  # type: ignore[assignment]
    group: Group
    num_chosen: int

    @classmethod
    def of(cls, whole: Experts, group: Group, num_chosen: int) -> SpreadExperts:
        """In the place of experts that were given no tensors. num_chosen: experts of a row."""
        made = cls.__new__(cls)
        vars(made).update(vars(whole))
        made.group, made.num_chosen = group, num_chosen
        made.keep_experts(group.share(whole.num_experts))
        return made

    def __call__(self, x: torch.Tensor, groups: RowGroups, backend: KernelBackend) -> torch.Tensor:
        """As `Experts`: [R, D], the same on every rank."""
        if groups.blocks is not None:
            raise ConfigError("experts over several ranks run on native or torch kernels")
        counts = [
            len(groups.rows_within(self.group.share_of(rank, self.num_experts)))
            for rank in range(self.group.size)
        ]
        own = x.new_zeros((max(counts), x.shape[1]))
        if counts[self.group.rank]:
            own[: counts[self.group.rank]] = super().__call__(x, groups.within(self.own), backend)
        parts = zip(all_gather(self.group, own), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Every rank's results go to all, as many rows as the fullest rank has: between equally
        many on all ranks and as many as one rank's experts can get.
        """
        size, chosen = self.group.size, self.num_chosen
        fewest = -(-run.rows * chosen // size)
        most = run.rows * min(chosen, len(self.own))
        row = self.width * run.itemsize
        return (Collective("all_gather", size, fewest * row, most * row),)
