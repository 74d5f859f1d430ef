"""Replicas that share experts, each rank a thread: what their servers do, over a front's queues."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from parallel.parallel_sessions import prepare_rank
from pilotfish.config import ParallelConfig
from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Groups
from pilotfish.parallel.lockstep import serve_idle
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish.plugins import load_registry
from pilotfish.testing.session import Session

REGISTRY = load_registry()
Logits = dict[str, torch.Tensor]


@attrs.frozen
class Arrival:
    """A request. replica: who gets it. waits: whether it comes when all have left, else at once."""

    replica: int
    tokens: list[int]
    waits: bool = False


@attrs.define
class _Mailbox:
    """What one replica was told. joins: requests that it has heard of. left_at: the joins with
    which it left.
    """

    requests: list[Arrival] = attrs.field(factory=list)
    joins: int = 0
    left_at: int = -1
    is_closed: bool = False


class Front:
    """Gives requests to replicas, one after the other, and tells all of each."""

    def __init__(self, num_replicas: int, arrivals: Sequence[Arrival]) -> None:
        self.boxes = [_Mailbox() for _ in range(num_replicas)]
        self._arrivals = arrivals
        self._changed = threading.Condition()

    def run(self) -> None:
        """To the end, when all have left."""
        for number, one in enumerate(self._arrivals, start=1):
            if one.waits:
                self._wait_for_all(number - 1)
            for place, box in enumerate(self.boxes):
                with self._changed:
                    if place == one.replica:
                        box.requests.append(one)
                    box.joins = number
                    self._changed.notify_all()
        self._wait_for_all(len(self._arrivals))
        with self._changed:
            for box in self.boxes:
                box.is_closed = True
            self._changed.notify_all()

    def read(self, replica: int) -> tuple[int, int]:
        """Requests of this replica so far, and of how many it has heard."""
        with self._changed:
            box = self.boxes[replica]
            return len(box.requests), box.joins

    def left(self, replica: int, joins: int) -> bool:
        """Waits for another request, of any replica; False where none comes any more."""
        with self._changed:
            box = self.boxes[replica]
            box.left_at = joins
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: box.joins > joins or box.is_closed, timeout=60)
            assert done
            return not box.is_closed

    def _wait_for_all(self, joins: int) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(box.left_at == joins for box in self.boxes), timeout=60
            )


@attrs.define
class Server:
    """A rank of a replica: runs passes of a random few rows while there are some."""

    groups: Groups
    session: Session
    front: Front
    drawn: random.Random
    logits: dict[str, list[torch.Tensor]] = attrs.field(factory=dict)
    joins: int = 0
    num_passes: int = 0

    def run(self) -> Logits:
        model: Any = self.session.model
        while True:
            if serve_idle(model.idle_round, self.look):
                self.one_pass()
            elif not self.goes_on():
                return {name: torch.cat(parts) for name, parts in self.logits.items()}

    def look(self) -> tuple[bool, int]:
        """The first rank of a replica reads, and tells the others."""
        replica = self.groups.data.rank
        count, joins = self._told(*self.front.read(replica))
        for number in range(len(self.logits), count):
            name = f"{replica}.{number}"
            self.session.add(name, self.front.boxes[replica].requests[number].tokens)
            self.logits[name] = []
        self.joins = joins
        return any(map(self.session.left, self.session.contexts)), joins

    def one_pass(self) -> None:
        left = [name for name in self.session.contexts if self.session.left(name)]
        chosen = self.drawn.sample(left, self.drawn.randint(1, len(left)))
        rows = {name: self.drawn.randint(1, self.session.left(name)) for name in chosen}
        for name, logits in self.session.run(rows).items():
            self.logits[name].append(logits)
        self.num_passes += 1

    def goes_on(self) -> bool:
        is_first, replica = self.groups.tensor.rank == 0, self.groups.data.rank
        found = self.front.left(replica, self.joins) if is_first else True
        return bool(self._told(int(found))[0])

    def _told(self, *numbers: int) -> list[int]:
        return all_gather(self.groups.tensor, torch.tensor(numbers))[0].tolist()


def served(
    model: Path,
    config: ParallelConfig,
    arrivals: Sequence[Arrival],
    *,
    seed: int = 0,
    **options: Any,
) -> Logits:
    """Every request's logits, of the first rank of its replica; options: of `prepare_rank`."""
    front = Front(config.data_parallel, arrivals)

    def run(groups: Groups) -> Logits:
        prepared = prepare_rank(model, config, groups, registry=REGISTRY, **options)
        session = Session(prepared.model, prepared.load())
        drawn = random.Random(f"{seed} {groups.data.rank}")
        return Server(groups, session, front, drawn).run()

    posting = threading.Thread(target=front.run, daemon=True)
    posting.start()
    found: Logits = {}
    for number, logits in enumerate(run_ranks(thread_groups(config), run)):
        if number % config.tensor_parallel == 0:
            found |= logits
    posting.join()
    return found


def alone(
    model: Path, slices: int, arrivals: Sequence[Arrival], **options: Any
) -> Mapping[str, torch.Tensor]:
    """The same on one device, each request in one pass."""
    config = ParallelConfig(reduction_slices=slices)
    prepared = prepare_rank(model, config, Groups.of_rank(0, config), registry=REGISTRY, **options)
    session, names = Session(prepared.model, prepared.load()), list[str]()
    for one in arrivals:
        name = f"{one.replica}.{sum(name.startswith(f'{one.replica}.') for name in names)}"
        session.add(name, one.tokens)
        names.append(name)
    return {name: session.finish(name) for name in names}
