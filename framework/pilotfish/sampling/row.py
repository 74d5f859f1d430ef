"""SamplingRow: what the sampler must know of one row of logits.

Knows: a request's options and where in the request the row lies. Does not know: the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pilotfish.config import SamplingParams
from pilotfish.sampling.penalties import TokenHistory
from pilotfish.sampling.truncation import Truncation


@attrs.frozen(kw_only=True)
class SamplingRow:
    """One row: the token at `position` of one request is to be sampled.

    params: the request's options. seed: of its noise, in [0, 2**63).
    position: absolute, the index of the token to be sampled in prompt and answer together. The
        noise depends on seed and position, so equal requests with equal seeds get equal texts.
    history: the committed tokens; needed for penalties only.
    draft_ids: the drafted tokens between the committed ones and this row, in order: verify row i
        has draft[:i]; plain decoding has none.
    banned_ids: tokens that must not come here.
    request_id: named in errors.
    """

    params: SamplingParams
    seed: int
    position: int
    history: TokenHistory | None = None
    draft_ids: Sequence[int] = ()
    banned_ids: Sequence[int] = ()
    request_id: str = ""

    @property
    def has_edits(self) -> bool:
        """Whether bias, penalties or banned tokens change the logits."""
        return bool(self.banned_ids or self.params.logit_bias) or self.params.has_penalties

    @property
    def truncation(self) -> Truncation:
        """The options that cut the tail of the distribution."""
        params = self.params
        return Truncation(top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
