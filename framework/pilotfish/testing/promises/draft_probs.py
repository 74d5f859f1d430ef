"""The promise about the laws of drafts: a token is drawn from what its drafter says it was.

Knows: probabilities, and how often what is drawn from them comes. Does not know: drafters.
Axis letters: G drafted tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from pilotfish.config import SamplingParams
from pilotfish.sampling import Sampler, SamplingRow, gumbel
from pilotfish.speculation import BlockProposer, SequentialProposer
from pilotfish.speculation.acceptance import VerifyRequest
from pilotfish.testing import listeners
from pilotfish.testing.drafted import NUM_TOKENS, echo, under_test
from pilotfish.testing.outcome import Broken, want
from pilotfish.testing.subject import Subject

NUM_SEEDS = 64
"""Texts of each kind. A law that is flattened a little is off by ten standard deviations then, and
by four in a quarter of them."""
MOST_OFF = 6.0
"""Standard deviations: what is drawn from its law is further off once in a billion runs."""
NUM_HALVES = 8
LEAST = -1e4
"""A logarithm of no probability."""
NEAR = 1e-9
"""Of probabilities in float64 that are equal by definition, found by bisection."""
ROUNDING = 1e-12
"""A draft's law may exceed the target's everywhere by so little: what is left of it is nothing."""
MOST_LIKELY = 16
"""Tokens that laws of the kit's own have: each is looked at by itself, 50 times."""


def residual_acceptance_keeps_the_law(subject: Subject) -> None:
    """Drafts are drawn from the law they say, and what is committed has the target's, exactly."""
    llm = under_test(subject, subject.dtype, acceptance="residual")
    prompts, params = [], []
    for seed in range(NUM_SEEDS):
        prompts.append(subject.tokens(6 + seed % 4, seed % 6))
        params.append(SamplingParams(temperature=0.9, top_k=8, max_tokens=NUM_TOKENS, seed=seed))
        repeats = echo(subject, 17, seed, temperature=0.9)
        prompts.append(repeats.prompt)
        params.append(repeats.params)
    tally = Tally(with_noise=isinstance(llm.proposer, SequentialProposer | BlockProposer))
    with listeners.judged(tally.add):
        llm.generate(prompts, params)
    if tally.first is None:
        raise Broken("no draft was judged", "one at least")
    tally.want_drawn()
    _want_committed_probs(*tally.first)


class Tally:
    """How often drafted tokens are what their laws make likely, and what falls into halves of V.

    with_noise: whether each is to be what the target's own noise draws, as the library's drivers
    promise. Keeps no law: they are large. first: the logits [R, V] and the request that were judged
    first; None where none was.
    """

    def __init__(self, *, with_noise: bool) -> None:
        self.first: tuple[torch.Tensor, VerifyRequest] | None = None
        self._with_noise = with_noise
        self._unlike: tuple[int, int] | None = None
        self._seen = set[tuple[int, int]]()
        self._halves = torch.empty(0)
        self._gaps = torch.zeros(1 + NUM_HALVES, dtype=torch.float64)
        self._variances = torch.zeros(1 + NUM_HALVES, dtype=torch.float64)

    def add(self, logits: torch.Tensor, request: VerifyRequest) -> None:
        """Counts a request's drafts; of each place in a text one, since its noise is the same."""
        if self.first is None:
            self.first = logits.clone(), request
        if request.draft.probs is None:
            return  # certain, and such a one has the law that it says
        for token, probs, row in zip(
            request.drafts, request.draft.probs, request.rows, strict=False
        ):
            if (row.seed, row.position) not in self._seen:
                self._seen.add((row.seed, row.position))
                self._add(token, probs.cpu(), row)

    def _add(self, token: int, probs: torch.Tensor, row: SamplingRow) -> None:
        if self._with_noise and self._unlike is None:
            noise = gumbel(torch.tensor([row.seed]), torch.tensor([row.position]), len(probs))[0]
            drawn = int((probs.float().log() + noise).argmax())
            self._unlike = None if drawn == token else (token, drawn)
        if not self._halves.numel():
            made = torch.Generator().manual_seed(0)
            self._halves = torch.randint(0, 2, (NUM_HALVES, len(probs)), generator=made).double()
        share = probs.double() / probs.double().sum()
        numbers = torch.cat((share.log().clamp(min=LEAST)[None], self._halves))
        means = numbers @ share
        self._gaps += numbers[:, token] - means
        self._variances += (numbers - means[:, None]).square() @ share

    def want_drawn(self) -> None:
        """Raises Broken where tokens were not drawn from the laws that came with them."""
        if self._unlike is not None:
            token, drawn = self._unlike
            want(False, f"{token} drafted where its own law draws {drawn}", f"{drawn}")
        for number, (gap, variance) in enumerate(
            zip(self._gaps.tolist(), self._variances.tolist(), strict=True)
        ):
            off = gap / math.sqrt(variance) if variance > NEAR else 0.0
            what = f"fall into one half of the vocabulary (no. {number})"
            want(
                abs(off) <= MOST_OFF,
                f"{len(self._seen)} drafted tokens that {what if number else 'are the likely ones'}"
                f" more, or less, often than the laws said of them make it: by {off:.1f} standard "
                "deviations",
                f"at most {MOST_OFF:.0f}: each token drawn from the law that is returned with it",
            )


def _want_committed_probs(logits: torch.Tensor, request: VerifyRequest) -> None:
    """With drafts drawn from any law the committed token has the target's."""
    full = Sampler().process_logits(logits, request.rows).double().softmax(-1)[0]
    few = torch.zeros_like(full)
    few[full.topk(min(MOST_LIKELY, len(full))).indices] = 1.0
    p = full * few / (full * few).sum()
    certain = torch.zeros_like(p)
    certain[int(p.argmax())] = 1.0
    for q in (p, p * (1 + ROUNDING), p.flip(0), few / few.sum(), certain):
        probs = listeners.committed_probs(logits, request, p, q)
        gap = float((probs - p).abs().max())
        want(gap <= NEAR, f"a committed token whose law is off by {gap:.2g}", f"at most {NEAR:.0e}")
