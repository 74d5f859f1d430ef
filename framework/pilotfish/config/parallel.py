"""ParallelConfig: on how many devices a model runs, and how its sums are cut."""

from __future__ import annotations

from typing import Literal

import attrs

from pilotfish.config.checks import int_at_least, number, one_of, optional_int_at_least
from pilotfish.errors import ConfigError

Distributed = Literal["auto", "spawn", "torchrun", "ray"]
DISTRIBUTED = ("auto", "spawn", "torchrun", "ray")


@attrs.frozen(kw_only=True)
class ParallelConfig:
    """Devices of a model and its replicas. Each rank is a process with a device of its own.

    tensor_parallel: ranks that split attention heads, feed-forward columns and the vocabulary.
    data_parallel: replicas of the model, each of tensor_parallel ranks, with requests of its own.
        More than one are in processes of their own, all of them.
    expert_parallel: ranks that split experts; None: as many as split the rest. It divides
        tensor_parallel, and an expert lies whole on tensor_parallel / expert_parallel of the ranks;
        or it is tensor_parallel times a divisor of data_parallel: so many replicas share experts.
    reduction_slices: S, into which the columns of row-parallel products are cut; None: as many as
        there are tensor-parallel ranks. Runs of equal S have equal bits on any number of ranks that
        divides it.
    distributed: what starts the ranks: "spawn" is this process, "torchrun" and "ray" are those;
        "auto" is torchrun where it runs this process, else spawn.
    rank_timeout: seconds after which a rank that does not answer is given up.
    """

    tensor_parallel: int = attrs.field(default=1, validator=int_at_least(1))
    data_parallel: int = attrs.field(default=1, validator=int_at_least(1))
    expert_parallel: int | None = attrs.field(default=None, validator=optional_int_at_least(1))
    reduction_slices: int | None = attrs.field(default=None, validator=optional_int_at_least(1))
    distributed: Distributed = attrs.field(default="auto", validator=one_of(DISTRIBUTED))
    rank_timeout: float = attrs.field(
        default=60.0,
        validator=number("seconds, > 0 and <= 86400", lambda value: 0 < value <= 86400),
    )

    def __attrs_post_init__(self) -> None:
        size, slices, experts = self.tensor_parallel, self.num_slices, self.num_expert_ranks
        if slices % size:
            raise ConfigError(
                f"reduction_slices is {slices} and tensor_parallel {size}; wanted a multiple of "
                f"{size}, so that every rank has as many slices"
            )
        if size % experts and (experts % size or self.data_parallel % (experts // size)):
            replicas = self.data_parallel
            fits = [size * n for n in range(2, replicas + 1) if replicas % n == 0]
            raise ConfigError(
                f"expert_parallel is {experts} and tensor_parallel {size}; wanted a divisor of "
                f"{size}"
                + (f", or, over replicas, one of {', '.join(map(str, fits))}" if fits else "")
            )

    @property
    def num_slices(self) -> int:
        """reduction_slices, with None resolved."""
        return self.reduction_slices or self.tensor_parallel

    @property
    def num_expert_ranks(self) -> int:
        """expert_parallel, with None resolved."""
        return self.expert_parallel or self.tensor_parallel

    @property
    def num_ranks(self) -> int:
        """Processes of one model, which is one replica."""
        return self.tensor_parallel

    @property
    def num_replicas(self) -> int:
        """Models, each on as many ranks."""
        return self.data_parallel

    @property
    def num_processes(self) -> int:
        """Ranks of all replicas."""
        return self.num_ranks * self.num_replicas
