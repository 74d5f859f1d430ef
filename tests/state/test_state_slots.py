"""SlotPool against a naive model, and its errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.errors import OutOfSlotsError, StateError
from pilotfish.state import SlotPool


@given(num_slots=st.integers(1, 4), names=st.lists(st.sampled_from("abcdef"), max_size=30))
def test_every_slot_has_one_owner_or_none(num_slots: int, names: list[str]) -> None:
    """A name that owns a slot gives it back, one that does not claims one."""
    pool = SlotPool(num_slots)
    owners: dict[str, int] = {}
    for name in names:
        if name in owners:
            assert pool.release(name) == owners.pop(name)
        elif len(owners) == num_slots:
            with pytest.raises(OutOfSlotsError, match=f"all {num_slots} are owned"):
                pool.claim(name)
        else:
            slot = pool.claim(name)
            assert 0 <= slot < num_slots
            assert slot not in owners.values()
            owners[name] = slot
        assert pool.request_ids == tuple(owners)
        assert pool.num_free == num_slots - len(owners)
        assert {one: pool.slot_of(one) for one in owners} == owners


def test_errors_name_the_request() -> None:
    pool = SlotPool(1)
    pool.claim("a")
    with pytest.raises(StateError, match="'a' is claimed already"):
        pool.claim("a")
    with pytest.raises(OutOfSlotsError, match="'b' wants a slot"):
        pool.claim("b")
    with pytest.raises(StateError, match="'b' is not claimed"):
        pool.release("b")
    pool.release("a")
    with pytest.raises(StateError, match="'a' is not claimed"):
        pool.release("a")
    with pytest.raises(StateError, match="'a' is not claimed"):
        pool.slot_of("a")
    with pytest.raises(StateError, match="num_slots is 0"):
        SlotPool(0)
