"""The promise about several devices: a model that ranks share has the bits of one.

Knows: ranks as threads of this process, each with its shard, state and session. Does not know:
processes, or what is split.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import attrs
import torch

from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish.protocols.optional import of_model
from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.outcome import NotApplicable, want
from pilotfish.testing.session import Session
from pilotfish.testing.subject import LONG, Subject

SIZES = (2, 4)
"""Ranks: as many as there are key and value heads in tiny models, and more."""


def any_number_of_ranks_gives_the_same_bits(subject: Subject) -> None:
    """Logits on 2 and 4 ranks, and on 2 that share experts alone, have the bits of one device.

    It has as many reduction slices.
    """
    backend = subject.prepared(subject.dtype).backend
    if backend.name == "torch":
        raise NotApplicable("torch's products may depend on the number of columns; native ones not")
    if not backend.invariant:
        raise NotApplicable(backend.why_not_invariant)
    sizes = SIZES if subject.num_ranks is None else (subject.num_ranks,)
    refused: dict[int, str] = {}
    for size in sizes:
        config = _accepted(subject, size, max(sizes), refused)
        if config is None:
            continue
        for dtype in subject.dtypes:
            found = _logits(subject, dtype, config)
            wanted = _logits(subject, dtype, attrs.evolve(config, tensor_parallel=1))
            for name, logits in wanted.items():
                want_same_bits(found[name], logits, f"{dtype}, {name} on {size} ranks, logits")
    if len(refused) == len(sizes):
        want(subject.num_ranks is None, refused[sizes[0]], f"{sizes[0]} ranks that share it")
        raise NotApplicable(refused[sizes[0]])
    if subject.num_ranks is None:
        _check_replicas(subject)


def _check_replicas(subject: Subject) -> None:
    """Where the model has experts that two replicas of one rank each can share."""
    config = ParallelConfig(data_parallel=2, expert_parallel=2)
    try:
        subject.prepared(subject.dtype, parallel=config)
    except ConfigError:
        return
    for dtype in subject.dtypes:
        wanted = _logits(subject, dtype, ParallelConfig())
        for replica, found in enumerate(_of_all_ranks(subject, dtype, config)):
            for name, logits in wanted.items():
                said = (
                    f"{dtype}, {name} in replica {replica} of 2, whose experts are shared, logits"
                )
                want_same_bits(found[name], logits, said)


def _accepted(
    subject: Subject, size: int, num_slices: int, refused: dict[int, str]
) -> ParallelConfig | None:
    """Of so many ranks, with these slices, or as many as ranks; None where it is `refused`."""
    for slices in dict.fromkeys((num_slices, size)):
        config = ParallelConfig(tensor_parallel=size, reduction_slices=slices)
        try:
            subject.prepared(subject.dtype, parallel=config)
        except ConfigError as error:
            refused[size] = str(error)
        else:
            refused.pop(size, None)
            return config
    return None


def _logits(subject: Subject, dtype: str, config: ParallelConfig) -> Mapping[str, torch.Tensor]:
    """On the first rank, which samples."""
    return _of_all_ranks(subject, dtype, config)[0]


def _of_all_ranks(
    subject: Subject, dtype: str, config: ParallelConfig
) -> list[Mapping[str, torch.Tensor]]:
    """Of every row, in passes over a random few, which are others in each replica."""

    def run(groups: Groups) -> Mapping[str, torch.Tensor]:
        prepared = subject.prepared(dtype, parallel=config, groups=groups)
        session = Session(prepared.model, prepared.load())
        session.add_all({name: subject.tokens(LONG, seed) for seed, name in enumerate("abc")})
        found = session.finish_mixed(random.Random(groups.data.rank))
        while groups.num_expert_replicas > 1 and of_model(prepared.model).idle_round(0):
            pass
        return found

    return run_ranks(thread_groups(config), run)
