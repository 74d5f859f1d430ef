"""What an object holds: bytes counted once, entries of containers, and nothing behind a class."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch

from pilotfish.testing.held import Held, held_by


class Owner:
    __slots__ = ("__dict__", "slot")

    def __init__(self, **values: Any) -> None:
        self.slot = values.pop("slot", 0)
        self.__dict__.update(values)


@attrs.define
class Slotted:
    value: Any


def test_a_view_counts_with_the_whole_that_it_keeps() -> None:
    whole = torch.zeros(10, 4)
    assert held_by(Owner(view=whole[:1])).num_bytes == 160
    assert held_by(Owner(view=whole[:1], other=[whole, whole[2:]])).num_bytes == 160
    assert held_by(Owner(array=np.zeros((10, 4))[1:])).num_bytes == 320


def test_what_is_behind_attributes_and_containers_is_found() -> None:
    row = torch.zeros(4)
    for holder in (
        {"a": row},
        [(row,)],
        Slotted(row),
        Owner(slot=row),
        Owner(slot={1: [Slotted((row,))]}),
    ):
        assert held_by(Owner(it=holder)).num_bytes == 16
    assert held_by(Owner(it=bytearray(7))).num_bytes == 7
    assert held_by(Owner(it=Owner)) == held_by(Owner(it=1))


def test_entries_are_counted_and_circles_end() -> None:
    one = Owner(names={"a": 1, "b": 2})
    before = held_by(one)
    one.names["c"] = 3
    assert held_by(one) == Held(before.num_bytes, before.num_entries + 1)
    one.itself = one
    assert held_by(one).num_bytes == 0
