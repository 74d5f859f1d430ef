"""Group: the ranks that share a role, as one of them sees it. Groups: those of one model.

Knows: a rank's number, how many there are, and what carries tensors between them. Does not know:
how ranks are started, or what they compute. Nothing here is global: layers are given their group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import attrs
import torch

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import PilotfishError


class Transport(Protocol):
    """What carries tensors between the ranks of a group; every rank makes the same calls."""

    def all_gather(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """x: of one shape on all ranks. Returns every rank's, in the order of ranks."""
        ...

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """x: [ranks, ...]. Returns the same shape: what every rank has for this one, in order."""
        ...

    def all_to_all_rows(
        self, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]
    ) -> torch.Tensor:
        """x: [rows, ...], the first sent[0] of them for rank 0, and so on. Returns received[0] rows
        of rank 0 for this one, and so on: every rank knows how many it gets.
        """
        ...

    def gather(self, x: torch.Tensor, root: int) -> Sequence[torch.Tensor] | None:
        """As `all_gather`, on the rank `root`; None on the others."""
        ...


@attrs.define(eq=False)
class Group:
    """rank: this process's number, 0 to size - 1.

    transport: None in a group of one, and until the ranks are connected.
    """

    rank: int = attrs.field(default=0, on_setattr=attrs.setters.frozen)
    size: int = attrs.field(default=1, on_setattr=attrs.setters.frozen)
    transport: Transport | None = None

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of {self.size}; wanted a rank below the size")

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def carrier(self) -> Transport:
        """The transport. Raises PilotfishError before the ranks are connected."""
        if self.transport is None:
            raise PilotfishError(f"rank {self.rank} of {self.size} is not connected to the others")
        return self.transport

    def share(self, count: int) -> range:
        """What of `count` things in a row is this rank's; the first ranks have one more where the
        ranks do not divide them.
        """
        return self.share_of(self.rank, count)

    def share_of(self, rank: int, count: int) -> range:
        """The same of another rank."""
        each, more = divmod(count, self.size)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))


@attrs.frozen(kw_only=True)
class Groups:
    """tensor: ranks of one replica, which split heads, columns and vocabulary.

    expert: ranks that split experts: some of the tensor group's, or all those of several replicas.
    data: which of the replicas this is; nothing is sent in it.

    reduction_slices: into how many slices the columns of a row-parallel product are cut; its bits
    follow from that number alone (see `reduction.py`). The tensor group's size divides it.
    logits_everywhere: whether every rank gets all logits, for callers that sample on each; else
    the first rank alone.
    """

    tensor: Group = attrs.field(factory=Group)
    expert: Group = attrs.field(factory=Group)
    data: Group = attrs.field(factory=Group)
    reduction_slices: int = 1
    logits_everywhere: bool = False

    @classmethod
    def of_rank(cls, rank: int, config: ParallelConfig) -> Self:
        """Those of one rank, not connected.

        rank: rank t of replica d is number d * tensor_parallel + t.
        """
        tensor, experts = config.tensor_parallel, config.num_expert_ranks
        return cls(
            tensor=Group(rank % tensor, tensor),
            expert=Group(rank % experts, experts),
            data=Group(rank // tensor, config.data_parallel),
            reduction_slices=config.num_slices,
        )

    @property
    def is_trivial(self) -> bool:
        """Whether nothing is split and no product is cut."""
        return self.is_whole and self.reduction_slices == 1

    @property
    def is_whole(self) -> bool:
        """Whether this rank has all of the model."""
        return self.tensor.size == self.expert.size == 1

    @property
    def within_replica(self) -> Groups:
        """Those of a model that shares nothing with other replicas, whose passes are no rounds."""
        return self if self.num_expert_replicas == 1 else attrs.evolve(self, expert=Group())

    @property
    def number(self) -> int:
        """This rank's, among those of all replicas."""
        return self.data.rank * self.tensor.size + self.tensor.rank

    @property
    def num_expert_replicas(self) -> int:
        """Replicas that share their experts; 1: each has all of them."""
        return max(1, self.expert.size // self.tensor.size)
