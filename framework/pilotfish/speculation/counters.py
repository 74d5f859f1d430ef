"""SpeculationCounters: what speculation did for one request.

Knows: numbers of steps and tokens. Does not know: tokens, drafters or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Self

import attrs


@attrs.frozen(kw_only=True)
class SpeculationCounters:
    """method, acceptance: as asked for. num_steps: passes after the prompt's.

    drafted_at, accepted_at: the same by position in the block, first draft first.
    """

    method: str
    acceptance: str
    num_steps: int = 0
    drafted_at: tuple[int, ...] = ()
    accepted_at: tuple[int, ...] = ()

    @property
    def drafted(self) -> int:
        """Tokens that were verified."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Tokens of them that were kept."""
        return sum(self.accepted_at)

    def after(self, num_drafted: int, num_accepted: int) -> Self:
        """With one pass more that verified so many tokens, 0 where there was no proposal."""
        return attrs.evolve(
            self,
            num_steps=self.num_steps + 1,
            drafted_at=_counted(self.drafted_at, num_drafted),
            accepted_at=_counted(self.accepted_at, num_accepted, num_drafted),
        )

    def to_json(self, num_decoded: int) -> dict[str, Any]:
        """num_decoded: tokens of the answer after the first. Rates are of each position alone."""
        steps = self.num_steps
        facts: dict[str, Any] = {
            "method": self.method,
            "acceptance": self.acceptance,
            "steps": steps,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "mean_committed_per_step": num_decoded / steps if steps else 0.0,
            "accepted_per_position": [
                accepted / drafted
                for accepted, drafted in zip(self.accepted_at, self.drafted_at, strict=True)
            ],
        }
        if self.acceptance == "relaxed":
            facts["lossy"] = True
        if self.acceptance == "synthetic":
            facts["not_real"] = True
        return facts


def _counted(counts: Sequence[int], num_hits: int, num_places: int = 0) -> tuple[int, ...]:
    """One more at each of the first num_hits places; at least num_places places."""
    hits = [1] * num_hits + [0] * (num_places - num_hits)
    return tuple(map(sum, zip_longest(counts, hits, fillvalue=0)))
