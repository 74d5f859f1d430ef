"""SlotPool: which request owns which slot of a cache with one block a request.

Knows: ids and ints. Does not know: what a slot holds.
"""

from __future__ import annotations

from pilotfish.errors import OutOfSlotsError, StateError


class SlotPool:
    """Slots 0 to num_slots - 1, each with one owner or none.

    num_slots: at least 1.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise StateError(f"num_slots is {num_slots}; wanted at least 1: raise max_batch_size")
        self.num_slots = num_slots
        self.clear()

    def clear(self) -> None:
        """Takes every slot back."""
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._slot_of: dict[str, int] = {}

    @property
    def num_free(self) -> int:
        """Slots without an owner."""
        return len(self._free)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The owners, oldest first."""
        return tuple(self._slot_of)

    def claim(self, request_id: str) -> int:
        """Gives the request a slot.

        Raises StateError when it has one already, OutOfSlotsError when none is free.
        """
        if request_id in self._slot_of:
            raise StateError(
                f"request {request_id!r} is claimed already: it owns slot "
                f"{self._slot_of[request_id]}; release it first"
            )
        if not self._free:
            raise OutOfSlotsError(
                f"request {request_id!r} wants a slot and all {self.num_slots} are owned: release "
                "a request or raise max_batch_size"
            )
        slot = self._slot_of[request_id] = self._free.pop()
        return slot

    def slot_of(self, request_id: str) -> int:
        """The request's slot. Raises StateError when it has none."""
        try:
            return self._slot_of[request_id]
        except KeyError:
            raise StateError(f"request {request_id!r} is not claimed; claim it first") from None

    def release(self, request_id: str) -> int:
        """Takes the request's slot back and returns it. Raises StateError when it has none."""
        slot = self.slot_of(request_id)
        del self._slot_of[request_id]
        self._free.append(slot)
        return slot
