"""Acceptance: which drafted tokens count, and which token follows them.

Knows: verify rows, drafted tokens, and the rules. Does not know: drafters, caches or requests.
Axis letters: R verify rows of all requests, G drafted tokens of one, V vocabulary.

Row i of a request is the target's row after its committed tokens and drafts[:i]; it judges
drafts[i], and the row after the last draft gives the bonus token.

- coupled (Daliri et al. 2024, drafter-invariant): every row samples its own token with the noise of
  its (seed, position); a draft is accepted if it is that token. The text is that of plain decoding.
- residual (Leviathan et al. 2023, Chen et al. 2023): accept d with min(1, p(d) / q(d)), else sample
  from max(p - q, 0) normalised. The law is that of plain decoding, the text is not.
- relaxed: lossy; in a thinking phase the draft is accepted if it is among the target's likeliest.
- synthetic: for benchmarks; drafts are accepted at a rate, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import torch
from torch import Tensor

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.count_accepted import count_accepted
from pilotfish.kernels.elementwise import exp
from pilotfish.kernels.sampling.native import serves
from pilotfish.sampling.logprobs import TokenLogprobs, token_logprobs
from pilotfish.sampling.noise import residual_gumbel, uniform_at
from pilotfish.sampling.row import SamplingRow
from pilotfish.sampling.sampler import Sampler

if TYPE_CHECKING:
    from pilotfish.config import SpeculativeConfig

Logprobs = tuple[TokenLogprobs | None, ...]


@attrs.frozen(kw_only=True)
class VerifyRequest:
    """rows: 1 + G SamplingRows. drafts: G token ids. probs: [G, V] float32 that they were drawn
    from; None: the drafts were certain. context: committed tokens, from which relaxed acceptance
    sees whether it may relax; thinks: the same, said outright.
    """

    rows: Sequence[SamplingRow]
    drafts: Sequence[int]
    probs: Tensor | None = None
    context: Sequence[int] = ()
    thinks: bool | None = None


@attrs.frozen(kw_only=True)
class Accepted:
    """num_accepted: drafts that count. tokens: those, and the one that follows. logprobs: one
    record a token, None where none were asked for.
    """

    num_accepted: int
    tokens: tuple[int, ...]
    logprobs: Logprobs


class Acceptance(Protocol):
    """A rule."""

    def decide(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """logits: [R, V] float32, raw, the rows of all requests behind one another.

        Raises as `Sampler.sample`.
        """
        ...

    def release(self, request_id: str) -> None:
        """Drops what it keeps for a request."""
        ...


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


class CoupledAcceptance:
    """See the head of this file. backend: of the kernel that compares; None: torch."""

    def __init__(self, sampler: Sampler, backend: KernelBackend | None = None) -> None:
        self._sampler = sampler
        self._backend = backend or KernelBackend("torch")

    def decide(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """As Acceptance."""
        sampled = self._sampler.sample(logits, [row for r in requests for row in r.rows])
        counts, tokens = self._counted(sampled.token_ids, requests)
        decided, first = [], 0
        for request, count in zip(requests, counts, strict=True):
            stop = first + count + 1
            decided.append(
                Accepted(
                    num_accepted=count,
                    tokens=tuple(tokens[first:stop]),
                    logprobs=sampled.logprobs[first:stop],
                )
            )
            first += len(request.rows)
        return decided

    def _counted(
        self, token_ids: Tensor, requests: Sequence[VerifyRequest]
    ) -> tuple[list[int], list[int]]:
        """How many drafts of each request agree with the tokens of its rows; and the tokens."""
        if token_ids.device.type == "cpu":  # the numbers are here: no kernel is needed
            tokens = token_ids.tolist()
            return _count_here(tokens, requests), tokens
        drafts, offsets = _pack_drafts(requests, token_ids.device)
        accepted = count_accepted(token_ids, drafts, offsets, backend=self._backend)
        # One read for both: on a GPU each read waits for the pass.
        both = torch.cat([accepted, token_ids]).tolist()
        return both[: len(requests)], both[len(requests) :]

    def release(self, request_id: str) -> None:
        """Nothing is kept."""


def _count_here(tokens: Sequence[int], requests: Sequence[VerifyRequest]) -> list[int]:
    counts, first = [], 0
    for request in requests:
        count = 0
        while count < len(request.drafts) and tokens[first + count] == request.drafts[count]:
            count += 1
        counts.append(count)
        first += len(request.rows)
    return counts


def _pack_drafts(requests: Sequence[VerifyRequest], device: torch.device) -> tuple[Tensor, Tensor]:
    """[R] int64, what each row judges, -1 in the row that judges nothing; [B+1] int32 offsets."""
    drafts: list[int] = []
    offsets = [0]
    for request in requests:
        drafts += [*request.drafts, -1]
        offsets.append(len(drafts))
    return (
        torch.tensor(drafts, dtype=torch.int64, device=device),
        torch.tensor(offsets, dtype=torch.int32, device=device),
    )


class _OneByOne:
    """Rules that judge draft after draft; requests without drafts and greedy ones are coupled."""

    def __init__(self, sampler: Sampler, backend: KernelBackend | None = None) -> None:
        self._sampler = sampler
        self._coupled = CoupledAcceptance(sampler, backend)

    def decide(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """As Acceptance."""
        decided, first = [], 0
        for request in requests:
            rows = logits[first : first + len(request.rows)]
            if self.is_coupled(request):
                decided += self._coupled.decide(rows, [request])
            else:
                tokens = self.judge(rows, request)
                decided.append(
                    Accepted(
                        num_accepted=len(tokens) - 1,
                        tokens=tuple(tokens),
                        logprobs=_logprobs(rows, request.rows, tokens),
                    )
                )
            first += len(request.rows)
        return decided

    def release(self, request_id: str) -> None:
        """Nothing is kept."""

    def is_coupled(self, request: VerifyRequest) -> bool:
        """Whether this request is decided by the coupled rule."""
        return not request.drafts or request.rows[0].params.is_greedy

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """The accepted drafts, and the token after them."""
        raise NotImplementedError


class ResidualAcceptance(_OneByOne):
    """See the head of this file. A certain draft has the law that is all on it."""

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """As the base."""
        probs = self._sampler.probs(logits, request.rows).double()
        for place, draft in enumerate(request.drafts):
            p, row = probs[place], request.rows[place]
            if request.probs is None:
                q = torch.zeros_like(p)
                q[draft] = 1.0
            else:
                q = request.probs[place].double()
            if _uniform(row) <= float(acceptance_probability(p, q)[draft]):
                continue
            return [*request.drafts[:place], _draw(residual_probs(p, q), row)]
        last = request.rows[-1]
        [bonus] = self._sampler.sample(logits[-1:], [last]).token_ids.tolist()
        return [*request.drafts, bonus]


_SUM_BITS = 60
"""Of the whole numbers that a law is added up in."""


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """p, q: [V] laws of target and draft -> [V], min(1, p / q), 0 wherever p is 0."""
    ratio = torch.where(q > 0, p / q.clamp(min=torch.finfo(q.dtype).tiny), torch.ones_like(p))
    return torch.where(p > 0, ratio.clamp(max=1.0), torch.zeros_like(p))


def residual_probs(p: Tensor, q: Tensor) -> Tensor:
    """p, q: [V] -> [V], max(p - q, 0) normalised; p itself where that is zero everywhere.

    It is zero only where p and q are equal up to rounding; then a rejection is rounding too. The
    sum is one of whole numbers, which no order of addition changes.
    """
    left = (p - q).clamp(min=0.0)
    total = (left * 2.0**_SUM_BITS).long().sum().double() * 2.0**-_SUM_BITS
    return left / total if total > 0 else p


class RelaxedAcceptance(_OneByOne):
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
        """As the base. The end of the phase inside the block ends the relaxing."""
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


class SyntheticAcceptance(_OneByOne):
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
        """As the base."""
        width = len(request.drafts)
        if width not in self._bases:
            self._bases[width] = synthetic_base(self._rate, width)
        for place in range(width):
            if _uniform(request.rows[place]) > self._bases[width]:
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


def _uniform(row: SamplingRow) -> float:
    """In (0, 1]: a draft of probability 0 is never accepted."""
    return float(uniform_at(torch.tensor([row.seed]), torch.tensor([row.position])))


def _draw(probs: Tensor, row: SamplingRow) -> int:
    """probs: [V] float64 -> a token, with noise that no other use of the position shares."""
    noise = residual_gumbel(torch.tensor([row.seed]), torch.tensor([row.position]), probs.shape[0])
    backend = KernelBackend("native" if serves(noise.device) else "torch")
    # The largest of log(probs) + noise, with a function whose bits are the same on every processor.
    scores = probs * exp(noise[0], backend=backend).double().to(probs.device)
    return int(scores.argmax())


def _logprobs(logits: Tensor, rows: Sequence[SamplingRow], tokens: list[int]) -> Logprobs:
    wanted = rows[0].params.logprobs
    if wanted is None:
        return (None,) * len(tokens)
    return tuple(token_logprobs(logits[: len(tokens)], tokens, wanted))
