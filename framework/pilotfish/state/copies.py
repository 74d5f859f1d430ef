"""Copies: what further replicas of a model take on the machine of the first one.

Knows: bytes. Does not know: what a replica is made of.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Copies:
    """count: replicas beside the first one; 0: the only one is in this process.

    mapped: bytes of weights that all replicas map of the same files, and so are in memory once.
    process: bytes that the process of each takes beside what is counted of its model.
    """

    count: int = 0
    mapped: int = 0
    process: int = 0

    def all_of(self, one: int) -> int:
        """Bytes of all replicas, where one takes so many."""
        if not self.count:
            return one
        return one + self.count * (one - self.mapped) + (self.count + 1) * self.process


NO_COPIES = Copies()
