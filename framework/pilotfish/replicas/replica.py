"""Replica: one of several, as its lead was last heard of.

Knows: whether it serves, and what it had counted before it was lost. Does not know: requests.
"""

from __future__ import annotations

import attrs

from pilotfish.ranks.failure import Failure
from pilotfish.replicas.lead import Lead


@attrs.define(eq=False)
class Replica:
    """lead: its process, or the last one that it had. failure: what ended that; error: the same as
    an exception. comes_back: whether it is started again. num_preemptions: of all its processes.
    """

    lead: Lead
    is_ready: bool = False
    comes_back: bool = False
    failure: Failure | None = None
    error: BaseException | None = None
    num_preemptions: int = 0
    _num_of_lost: int = 0

    def count_preemptions(self, number: int) -> None:
        """number: of the process that it has now."""
        self.num_preemptions = self._num_of_lost + number

    def lose(self, failure: Failure, error: BaseException) -> None:
        """Its process is lost."""
        self.comes_back, self.is_ready = self.lead.was_ready, False
        self.failure, self.error = failure, error
        self._num_of_lost = self.num_preemptions
