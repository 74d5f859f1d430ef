"""StopRules: when an answer ends.

Knows: end tokens, stop ids and limits of one request. Does not know: text (the detokenizer finds
stop strings) or scheduling.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

import attrs

from pilotfish.config import SamplingParams


@attrs.frozen(kw_only=True)
class StopRules:
    """The rules of one request.

    end_ids: tokens that end the answer: the model's, unless ignored, and the request's own.
    min_tokens: tokens of the answer before which only a limit ends it.
    max_total_tokens: prompt and answer together, from max_tokens or the context, what is less.
    """

    end_ids: frozenset[int]
    min_tokens: int
    max_total_tokens: int

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        *,
        num_prompt_tokens: int,
        eos_token_ids: Collection[int],
        max_seq_len: int,
    ) -> Self:
        """The rules that follow from a request's options, the model's end tokens and its context.

        eos_token_ids: as the checkpoint says (generation config before config).
        """
        own = () if params.ignore_eos else eos_token_ids
        return cls(
            end_ids=frozenset(own) | frozenset(params.stop_token_ids),
            min_tokens=params.min_tokens,
            max_total_tokens=min(num_prompt_tokens + params.max_tokens, max_seq_len),
        )

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """What must not be sampled while the answer is shorter than min_tokens."""
        return tuple(sorted(self.end_ids))
