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
    """tensor: ranks that split heads, columns and vocabulary. expert: ranks that split experts.

    reduction_slices: into how many slices the columns of a row-parallel product are cut; its bits
    follow from that number alone (see `reduction.py`). The tensor group's size divides it.
    logits_everywhere: whether every rank gets all logits, for callers that sample on each; else
    the first rank alone.
    """

    tensor: Group = attrs.field(factory=Group)
    expert: Group = attrs.field(factory=Group)
    reduction_slices: int = 1
    logits_everywhere: bool = False

    @classmethod
    def of_rank(cls, rank: int, config: ParallelConfig) -> Self:
        """Those of one rank of a model, not connected."""
        experts = config.num_expert_ranks
        return cls(
            tensor=Group(rank, config.tensor_parallel),
            expert=Group(rank % experts, experts),
            reduction_slices=config.num_slices,
        )

    @property
    def is_trivial(self) -> bool:
        """Whether nothing is split and no product is cut."""
        return self.tensor.size == self.expert.size == self.reduction_slices == 1
