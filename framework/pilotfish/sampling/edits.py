"""All edits of one row in their order, and what to say of a row that cannot be sampled.

Knows: SamplingRows and the edits of `penalties`. Does not know: batches, noise.
Axis letters: V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor

from pilotfish.errors import PilotfishError
from pilotfish.sampling.penalties import TokenHistory, add_bias_, ban_, penalize_
from pilotfish.sampling.row import SamplingRow


def edit_(logits: Tensor, row: SamplingRow) -> None:
    """Applies the row's edits; logits: [V] float32, changed in place.

    Raises RequestError for a token id outside the vocabulary.
    """
    add_bias_(logits, row.params)
    if row.params.has_penalties:
        penalize_(logits, row.params, history_of(row), row.draft_ids)
    ban_(logits, row.banned_ids)


def history_of(row: SamplingRow) -> TokenHistory:
    """The history of a row that has penalties; raises ValueError where it has none."""
    if row.history is None:
        raise ValueError(
            f"request {row.request_id!r} has penalties and no history; wanted a "
            "TokenHistory: pass history="
        )
    return row.history


def unusable(row: SamplingRow, largest: float) -> PilotfishError:
    """largest: the row's maximum that is not finite; NaN if the row holds one."""
    where = f"request {row.request_id!r}, position {row.position}"
    if largest == -math.inf:
        return PilotfishError(
            f"{where}: every token is masked (all logits are -inf); wanted at least one token that "
            "may be sampled: loosen logit_bias, min_tokens or the mask"
        )
    return PilotfishError(
        f"{where}: the logits hold {'NaN' if math.isnan(largest) else '+inf'}; wanted finite "
        "numbers or -inf: check the weights, or run in float32"
    )
