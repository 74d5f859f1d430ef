"""Acceptance rules by name, and those that change the text.

Knows: names, phases and rates. Does not know: drafters, caches or requests.
Axis letters: V vocabulary.

- relaxed: in a thinking phase the draft is accepted if it is among the target's likeliest.
- synthetic: for benchmarks; drafts are accepted at a rate, whatever they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pilotfish.kernels import KernelBackend
from pilotfish.sampling.sampler import Sampler
from pilotfish.speculation.acceptance import (
    Acceptance,
    CoupledAcceptance,
    OneByOne,
    ResidualAcceptance,
    VerifyRequest,
    uniform_of,
)

if TYPE_CHECKING:
    from pilotfish.config import SpeculativeConfig


def acceptance_rule(
    config: SpeculativeConfig, sampler: Sampler, backend: KernelBackend | None = None
) -> Acceptance:
    """The rule that a config names. backend: of its kernels; None: torch.

    Without thinking tokens "relaxed" relaxes only where a VerifyRequest says that it thinks.
    """
    if config.acceptance == "residual":
        return ResidualAcceptance(sampler, backend)
    if config.acceptance == "relaxed":
        start, end = config.thinking_tokens or (-1, -1)
        return RelaxedAcceptance(
            sampler, start, end, backend, top=config.relaxed_top, slack=config.relaxed_slack
        )
    if config.acceptance == "synthetic":
        return SyntheticAcceptance(sampler, config.synthetic_rate, backend)
    return CoupledAcceptance(sampler, backend)


class RelaxedAcceptance(OneByOne):
    """In a thinking phase a draft is accepted if it is one of the `top` likeliest tokens and its
    probability is at least the likeliest's less `slack`, all as the target would sample. Elsewhere
    coupled, and greedy requests always. Lossy.

    start, end: token ids that begin and end a thinking phase.
    """

    def __init__(
        self,
        sampler: Sampler,
        start: int,
        end: int,
        backend: KernelBackend | None = None,
        *,
        top: int = 10,
        slack: float = 0.6,
    ) -> None:
        super().__init__(sampler, backend)
        self._start, self._end = start, end
        self._top, self._slack = top, slack
        self._phases: dict[str, tuple[int, bool]] = {}

    def is_coupled(self, request: VerifyRequest) -> bool:
        """Outside a thinking phase."""
        return super().is_coupled(request) or not self._thinks(request)

    def release(self, request_id: str) -> None:
        """Forgets the request's phase."""
        self._phases.pop(request_id, None)

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """Draft by draft; the end of the phase inside the block ends the relaxing."""
        sampled = self._sampler.sample(logits, request.rows).token_ids.tolist()
        probs = self._sampler.probs(logits, request.rows)
        best, ids = probs.topk(min(self._top, probs.shape[1]), dim=-1)
        thinking = True
        for place, draft in enumerate(request.drafts):
            chance = float(probs[place, draft])
            near = draft in ids[place].tolist() and chance >= float(best[place, 0]) - self._slack
            if not (draft == sampled[place] or (thinking and near and chance > 0)):
                return [*request.drafts[:place], sampled[place]]
            thinking = thinking and draft != self._end
        return [*request.drafts, sampled[-1]]

    def _thinks(self, request: VerifyRequest) -> bool:
        """Whether the last start is after the last end; tokens seen before are not read again."""
        if request.thinks is not None:
            return request.thinks
        name, tokens = request.rows[0].request_id, request.context
        num_seen, thinks = self._phases.get(name, (0, False))
        if num_seen > len(tokens):
            num_seen, thinks = 0, False
        for place in range(num_seen, len(tokens)):
            if tokens[place] in (self._start, self._end):
                thinks = tokens[place] == self._start
        self._phases[name] = (len(tokens), thinks)
        return thinks


class SyntheticAcceptance(OneByOne):
    """Place i (from 1) is accepted with rate b^i whatever the draft is; the text is not real.

    rate: of all places together: (b + b^2 + ... + b^G) / G.
    """

    def __init__(self, sampler: Sampler, rate: float, backend: KernelBackend | None = None) -> None:
        super().__init__(sampler, backend)
        self._rate = rate
        self._bases: dict[int, float] = {}

    def is_coupled(self, request: VerifyRequest) -> bool:
        """Greedy requests are synthetic too."""
        return not request.drafts

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """Draft by draft, at the rate of its place."""
        width = len(request.drafts)
        if width not in self._bases:
            self._bases[width] = synthetic_base(self._rate, width)
        for place in range(width):
            if uniform_of(request.rows[place]) > self._bases[width]:
                break
        else:
            place = width
        row = request.rows[place]
        [follows] = self._sampler.sample(logits[place : place + 1], [row]).token_ids.tolist()
        return [*request.drafts[:place], follows]


def synthetic_base(rate: float, width: int) -> float:
    """b in [0, 1] with (b + ... + b^width) / width = rate, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = sum(middle**place for place in range(1, width + 1)) / width
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2
