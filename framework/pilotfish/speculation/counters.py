"""SpeculationCounters: what speculation did for one request.

Knows: numbers of steps and tokens. Does not know: tokens, drafters or time.
"""

from __future__ import annotations

from typing import Any

import attrs


@attrs.define(kw_only=True)
class SpeculationCounters:
    """method, acceptance: as asked for. num_steps: passes after the prompt's.

    drafted_at, accepted_at: the same by position in the block, first draft first.
    """

    method: str
    acceptance: str
    num_steps: int = 0
    drafted_at: list[int] = attrs.field(factory=list)
    accepted_at: list[int] = attrs.field(factory=list)

    @property
    def drafted(self) -> int:
        """Tokens that were verified."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Tokens of them that were kept."""
        return sum(self.accepted_at)

    def add_step(self, num_drafted: int, num_accepted: int) -> None:
        """One pass that verified so many tokens, 0 where there was no proposal."""
        self.num_steps += 1
        missing = num_drafted - len(self.drafted_at)
        if missing > 0:
            self.drafted_at += [0] * missing
            self.accepted_at += [0] * missing
        for place in range(num_drafted):
            self.drafted_at[place] += 1
            self.accepted_at[place] += place < num_accepted

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
