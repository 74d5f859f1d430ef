"""StepResult: what one pass gave one request.

Knows: tokens, rows and records. Does not know: how they were computed, or what they change.
Axis letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from pilotfish.batch import NO_DRAFT, Proposal

if TYPE_CHECKING:
    import torch

    from pilotfish.errors import PilotfishError
    from pilotfish.sampling import TokenLogprobs
    from pilotfish.speculation.acceptance import Accepted


@attrs.define(kw_only=True, eq=False)
class StepResult:
    """Nothing of the request is changed before it is committed.

    num_rows: rows to keep. tokens: sampled ones, in order; none for a chunk that is not the last.
    logprobs: one record (or None) a token. prompt_records: of the chunk's prompt tokens.
    kept_logits: [n, V] float32, rows for a request that keeps them; valid until the next pass.
    drafted: tokens that were verified; num_accepted: how many of them begin `tokens`.
    draft: proposed to follow `tokens`.
    error: why this request cannot go on; the others can.
    """

    num_rows: int
    tokens: tuple[int, ...] = ()
    logprobs: Sequence[TokenLogprobs | None] = ()
    prompt_records: Sequence[TokenLogprobs] = ()
    kept_logits: torch.Tensor | None = None
    drafted: Sequence[int] = ()
    num_accepted: int = 0
    draft: Proposal = NO_DRAFT
    error: PilotfishError | None = None

    def take(self, draft: Proposal, accepted: Accepted) -> None:
        """What became of the draft: the rows of tokens that do not count are not kept."""
        self.drafted, self.num_accepted = draft.tokens, accepted.num_accepted
        self.num_rows -= len(draft.tokens) - accepted.num_accepted
        self.tokens, self.logprobs = accepted.tokens, accepted.logprobs
        self.error = accepted.error or self.error
