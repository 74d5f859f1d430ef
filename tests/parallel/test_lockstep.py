"""Lockstep: who wants a pass, who takes part without rows, and when all leave together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.config import ParallelConfig
from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.lockstep import Lockstep, serve_idle
from pilotfish.parallel.threads import ThreadTransport, run_ranks, thread_groups


@attrs.define
class Counting:
    """A layer that tells all ranks how many rows each has."""

    group: Group
    seen: list[list[int]] = attrs.field(factory=list)

    def exchange(self, rows: int) -> None:
        self.seen.append([int(n) for n in all_gather(self.group, torch.tensor(rows))])

    def take_part(self) -> None:
        self.exchange(0)


def on_replicas(size: int) -> list[Groups]:
    return thread_groups(ParallelConfig(data_parallel=size, expert_parallel=size), timeout_s=20.0)


@settings(max_examples=40)
@given(
    schedules=st.lists(
        st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3),
        min_size=2,
        max_size=4,
    )
)
def test_every_round_is_one_of_all(schedules: list[list[list[int]]]) -> None:
    """Each replica has spells of passes, given by the rows of each; a new spell is heard of by all,
    by each in its own time.
    """
    num_spells = max(map(len, schedules))

    def run(groups: Groups) -> list[list[list[int]]]:
        layers = [Counting(groups.expert) for _ in range(2)]
        lockstep = Lockstep(groups.expert, layers)
        spells = schedules[groups.data.rank]
        for spell in range(num_spells):
            todo = list(spells[spell]) if spell < len(spells) else []
            delay = iter(range(groups.data.rank))  # rounds for which the news are under way

            def look(
                todo: Sequence[int] = todo, delay: Iterator[int] = delay, at: int = spell
            ) -> tuple[bool, int]:
                heard = at + (next(delay, None) is None)
                return bool(todo) and heard > at, heard

            while serve_idle(lockstep.idle_round, look):
                rows = todo.pop(0)
                lockstep.begin_round()
                for layer in layers:
                    layer.exchange(rows)
        assert all(layer.seen == layers[0].seen for layer in layers)
        return [layer.seen for layer in layers]

    found = run_ranks(on_replicas(len(schedules)), run)
    assert all(one == found[0] for one in found)
    for place, spells in enumerate(schedules):
        own = Counter(seen[place] for seen in found[0][0])
        wanted = Counter(rows for spell in spells for rows in spell)
        assert own - Counter({0: own[0]}) == wanted
    assert all(any(seen) for seen in found[0][0]), "a round without rows"


def test_who_has_heard_of_more_keeps_all_from_leaving() -> None:
    def run(groups: Groups) -> list[bool]:
        lockstep = Lockstep(groups.expert, ())
        return [lockstep.idle_round(joins + groups.data.rank * late) for joins, late in STEPS]

    assert run_ranks(on_replicas(2), run) == [[False, True, False]] * 2


STEPS = ((4, 0), (4, 1), (5, 0))
"""Joins of the first rank, and how many more the second one has heard of."""


def test_a_round_that_all_know_of_is_begun_without_asking() -> None:
    def run(groups: Groups) -> list[int]:
        lockstep, transport = Lockstep(groups.expert, ()), groups.expert.transport
        assert isinstance(transport, ThreadTransport)
        found = []
        for is_agreed in (True, False):
            lockstep.begin_round(is_agreed=is_agreed)
            found.append(len(transport.calls))
        return found

    assert run_ranks(on_replicas(2), run) == [[0, 1]] * 2
