"""Sampling rows as an engine makes them, from the tokens of a request."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.config import SamplingParams
from pilotfish.sampling import SamplingRow, TokenHistory


def row_after(
    history: TokenHistory,
    params: SamplingParams,
    *,
    seed: int,
    draft_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
    request_id: str = "",
) -> SamplingRow:
    """The row that follows the tokens of a history and `draft_ids`."""
    num_outputs = history.num_output_tokens + len(draft_ids)
    banned = tuple(stop_ids) if num_outputs < params.min_tokens else ()
    return SamplingRow(
        params=params,
        seed=seed,
        position=history.num_tokens + len(draft_ids),
        history=history,
        draft_ids=draft_ids,
        banned_ids=(*banned, *params.suppress_tokens),
        request_id=request_id,
    )
