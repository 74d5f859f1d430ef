"""TokenChooser: which tokens a draft's logits mean, under the noise of the target.

Knows: sampling rows, laws, and rows that cannot be used. Does not know: passes, caches or drafters.
Axis letters: R rows of logits, V vocabulary of the target.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch

from pilotfish.batch import Proposal
from pilotfish.errors import PilotfishError
from pilotfish.sampling import Sampler

if TYPE_CHECKING:
    from pilotfish.sampling import SamplingRow


@attrs.frozen(kw_only=True)
class Chosen:
    """token: an id of the target. probs: [V] float32 that it was drawn from; None: not kept."""

    token: int
    probs: torch.Tensor | None = None


class TokenChooser:
    """Chooses one token a row with the target's own noise of that position (Gumbel coupling).

    Where the draft's law is close to the target's the same token wins, at every temperature.
    keeps_probs: whether the law is kept, which "residual" acceptance needs. whose: draft, for the
        one RuntimeWarning where its logits are not finite.
    """

    def __init__(self, *, keeps_probs: bool = False, whose: str = "the draft") -> None:
        self.keeps_probs = keeps_probs
        self.whose = whose
        self._has_warned = False
        self._sampler = Sampler()

    def choose(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[Chosen | None]:
        """logits: [R, V] float32, not changed. None where the draft has no token that may come."""
        found: list[Chosen | None] = []
        for index, token in enumerate(self._sample(logits, rows)):
            probs, one = None, slice(index, index + 1)
            if token is not None and self.keeps_probs:
                probs = self._sampler.probs(logits[one], rows[one])[0]
            found.append(None if token is None else Chosen(token=token, probs=probs))
        return found

    def _warn(self, logits: torch.Tensor) -> None:
        """Says once that a draft is broken; a row that is masked whole is nothing to say."""
        largest = float(logits.amax())
        if self._has_warned or largest < math.inf:
            return
        self._has_warned = True
        warnings.warn(
            f"{self.whose} computed numbers that are not finite, so nothing is drafted there: the "
            "text is right and no faster than without; check the draft's weights and config, or "
            "run in float32",
            RuntimeWarning,
            stacklevel=2,
        )

    def _sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        try:
            return list(self._sampler.sample(logits, rows).token_ids.tolist())
        except PilotfishError:
            if len(rows) == 1:
                self._warn(logits)
                return [None]
            singles = [self._sample(logits[i : i + 1], [row]) for i, row in enumerate(rows)]
            return [single[0] for single in singles]


def proposal_of(chosen: Sequence[Chosen]) -> Proposal:
    """The proposal of these tokens, in order, with their probabilities where they were kept."""
    probs = [one.probs for one in chosen if one.probs is not None]
    return Proposal(
        tokens=tuple(one.token for one in chosen), probs=torch.stack(probs) if probs else None
    )
