"""Acceptance: which drafted tokens count, and which token follows them.

Knows: verify rows, drafted tokens, and the rules. Does not know: drafters, caches or requests.
Axis letters: R verify rows of all requests, G drafted tokens of one, V vocabulary.

Row i of a request is the target's row after its committed tokens and drafts[:i]; it judges
drafts[i], and the row after the last draft gives the bonus token.

- coupled (Daliri et al. 2024, drafter-invariant): every row samples its own token with the noise of
  its (seed, position); a draft is accepted if it is that token. The text is that of plain decoding.
- residual (Leviathan et al. 2023, Chen et al. 2023): accept d with min(1, p(d) / q(d)), else sample
  from max(p - q, 0) normalised. The distribution is that of plain decoding, the text is not.
- relaxed, synthetic: see `acceptance_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import attrs
import torch
from torch import Tensor

from pilotfish.batch import NO_DRAFT, Proposal
from pilotfish.errors import PilotfishError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.count_accepted import count_accepted
from pilotfish.kernels.elementwise import exp
from pilotfish.kernels.sampling.native import serves
from pilotfish.sampling.logprobs import TokenLogprobs, token_logprobs
from pilotfish.sampling.noise import residual_gumbel, uniform_at
from pilotfish.sampling.row import SamplingRow
from pilotfish.sampling.sampler import Sampler

Logprobs = tuple[TokenLogprobs | None, ...]


@attrs.frozen(kw_only=True)
class VerifyRequest:
    """rows: 1 + G SamplingRows. draft: G tokens. context: committed tokens, from which relaxed
    acceptance sees whether it may relax; thinks: the same, said outright.
    """

    rows: Sequence[SamplingRow]
    draft: Proposal = NO_DRAFT
    context: Sequence[int] = ()
    thinks: bool | None = None

    @property
    def drafts(self) -> Sequence[int]:
        """The tokens to judge."""
        return self.draft.tokens

    def first(self, count: int) -> VerifyRequest:
        """With the first `count` of the drafts alone."""
        return attrs.evolve(self, rows=self.rows[: count + 1], draft=self.draft.first(count))


@attrs.frozen(kw_only=True)
class Accepted:
    """num_accepted: drafts that count. tokens: those, and the one that follows. logprobs: one
    record a token, None where none were asked for. error: why nothing can follow; no token then.
    """

    num_accepted: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: Logprobs = ()
    error: PilotfishError | None = None


class Acceptance:
    """Base of the rules."""

    def decide(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """logits: [R, V] float32, raw, the rows of all requests behind one another.

        A row that cannot be used (see `Sampler.sample`) concerns its own request: drafts count up
        to the row before it, since it may follow a token that is wrong; a first row that cannot be
        used is its request's error.
        """
        try:
            return self.decide_usable(logits, requests)
        except PilotfishError:
            ends = accumulate(len(request.rows) for request in requests)
            return [
                self._decide_alone(logits[end - len(request.rows) : end], request)
                for end, request in zip(ends, requests, strict=True)
            ]

    def _decide_alone(self, logits: Tensor, request: VerifyRequest) -> Accepted:
        """By its first rows, as many as can be used. logits: [1 + G, V], its own."""
        error: PilotfishError | None = None
        for count in range(len(request.drafts), -1, -1):
            try:
                return self.decide_usable(logits[: count + 1], [request.first(count)])[0]
            except PilotfishError as failure:
                error = failure
        return Accepted(error=error)

    def decide_usable(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """`decide` where every row can be used. Raises as `Sampler.sample`."""
        raise NotImplementedError

    def release(self, request_id: str) -> None:
        """Drops what it keeps for a request; most keep nothing."""


class CoupledAcceptance(Acceptance):
    """See the head of this file. backend: of the kernel that compares; None: torch."""

    def __init__(self, sampler: Sampler, backend: KernelBackend | None = None) -> None:
        self._sampler = sampler
        self._backend = backend or KernelBackend("torch")

    def decide_usable(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """All rows are sampled at once."""
        rows: list[SamplingRow] = []
        for request in requests:
            rows.extend(request.rows)
        sampled = self._sampler.sample(logits, rows)
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


def _count_here(tokens: Sequence[int], requests: Sequence[VerifyRequest]) -> list[int]:
    counts, first = [], 0
    for request in requests:
        count, drafts = 0, request.draft.tokens
        while count < len(drafts) and tokens[first + count] == drafts[count]:
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


class OneByOne(Acceptance):
    """Rules that judge draft after draft; requests without drafts and greedy ones are coupled."""

    def __init__(self, sampler: Sampler, backend: KernelBackend | None = None) -> None:
        self._sampler = sampler
        self._coupled = CoupledAcceptance(sampler, backend)

    def decide_usable(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[Accepted]:
        """One request after the other."""
        decided, first = [], 0
        for request in requests:
            rows = logits[first : first + len(request.rows)]
            if self.is_coupled(request):
                decided += self._coupled.decide_usable(rows, [request])
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

    def is_coupled(self, request: VerifyRequest) -> bool:
        """Whether this request is decided by the coupled rule."""
        return not request.drafts or request.rows[0].params.is_greedy

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """The accepted drafts, and the token after them."""
        raise NotImplementedError


class ResidualAcceptance(OneByOne):
    """See the head of this file. A certain draft has the law that is all on it."""

    def judge(self, logits: Tensor, request: VerifyRequest) -> list[int]:
        """Draft by draft, each against its own probabilities."""
        probs = self._sampler.probs(logits, request.rows).double()
        for place, draft in enumerate(request.drafts):
            p, row = probs[place], request.rows[place]
            if request.draft.probs is None:
                q = torch.zeros_like(p)
                q[draft] = 1.0
            else:
                q = request.draft.probs[place].double()
            if uniform_of(row) <= float(acceptance_probability(p, q)[draft]):
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


def uniform_of(row: SamplingRow) -> float:
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
