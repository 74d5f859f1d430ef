"""What the promises about drafts listen with: proposals, judgements, and a call that fails.

Knows: how a loaded engine is overheard. Does not know: what is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

import attrs
import torch

from pilotfish.config import SamplingParams
from pilotfish.engine import LLM
from pilotfish.sampling import SamplingRow
from pilotfish.speculation import DraftBatch, Proposal, acceptance
from pilotfish.speculation.acceptance import VerifyRequest
from pilotfish.speculation.checks import fault_of
from pilotfish.testing import drafters
from pilotfish.testing.outcome import Broken

ASKED = ("embed", "lm_head")
"""What a drafter may call of its target."""
CLOSE = 2.0**-40
"""Of chances that are found: a law is wanted a thousand times less exactly."""
Heard = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens so far, and what was drafted after them."""


def fail_once(proposer: Any, at: int, *, after: bool) -> None:
    """Makes `propose` raise in call number `at`, counting from 1, before or after it proposes."""
    real, calls = proposer.propose, count(1)

    def propose(batch: DraftBatch) -> Sequence[Proposal]:
        hit = next(calls) == at
        if hit and not after:
            raise drafters.DrafterFailedError("planted before a draft call")
        found: Sequence[Proposal] = real(batch)
        if hit:
            raise drafters.DrafterFailedError("planted after a draft call")
        return found

    proposer.propose = propose


class Proposals:
    """Listens to what is drafted: (tokens so far, drafted tokens), and how many rows counted.

    excess: (got, wanted) of tokens that are too many or no ids of the target. What is no list of
    Proposals with ints breaks the promise that listens. asked: what the target was asked for,
    "embed" or "lm_head".
    """

    def __init__(self, llm: LLM) -> None:
        proposer: Any = llm.proposer
        self._whose = f"{type(proposer).__name__}.propose returned"
        self._proposer, self._real = proposer, proposer.propose
        self._vocab_size = llm.vocab_size
        self._target: Any = llm.engine.runner.model
        self.asked = set[str]()
        self.clear()
        proposer.propose = self._listen

    def stop(self) -> None:
        """Listens no more."""
        self._proposer.propose = self._real

    def clear(self) -> None:
        """Forgets what was heard."""
        self.seen: list[Heard] = []
        self.num_rows = 0
        self.excess: list[tuple[str, str]] = []

    def _listen(self, batch: DraftBatch) -> Sequence[Proposal]:
        with self._overheard():
            found: Sequence[Proposal] = self._real(batch)
        fault = fault_of(found, len(batch.requests), self._vocab_size)
        if fault is not None:
            raise Broken(f"{self._whose} {fault[0]}", fault[1])
        for request, proposal in zip(batch.requests, found, strict=True):
            self.num_rows += request.num_new
            if proposal.tokens:
                self.seen.append((tuple(request.tokens), tuple(proposal.tokens)))
            self._judge(request.num_draft_tokens, proposal.tokens)
        return found

    @contextmanager
    def _overheard(self) -> Iterator[None]:
        """While it is entered the target notes for what it is asked."""

        def noting(name: str) -> Callable[..., Any]:
            real = getattr(self._target, name)

            def call(*args: Any) -> Any:
                self.asked.add(name)
                return real(*args)

            return call

        with ExitStack() as exits:
            for name in ASKED:
                if hasattr(self._target, name):
                    exits.enter_context(patch.object(self._target, name, noting(name)))
            yield

    def _judge(self, width: int, tokens: Sequence[int]) -> None:
        """Notes what the engine would cut or drop without a word."""
        if len(tokens) > width:
            self.excess.append(
                (f"{self._whose} {len(tokens)} tokens", f"at most {width}, the width")
            )
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                ids = f"ids of the target, 0 to {self._vocab_size - 1}"
                self.excess.append((f"{self._whose} the token {token}", ids))


@contextmanager
def greedy_drafts(llm: LLM) -> Iterator[list[tuple[tuple[int, ...], int, tuple[int, ...]]]]:
    """While it is entered drafts are taken greedily, whatever the answer's own options say.

    Yields (tokens so far, tokens asked for, drafted tokens) of where any were asked for.
    """
    proposer: Any = llm.proposer
    real, seen = proposer.propose, []

    def propose(batch: DraftBatch) -> Sequence[Proposal]:
        requests = [
            attrs.evolve(one, sampling_row=partial(_greedy_row, len(one.tokens)))
            for one in batch.requests
        ]
        found: Sequence[Proposal] = real(attrs.evolve(batch, requests=requests))
        for request, proposal in zip(requests, found, strict=True):
            if width := request.num_draft_tokens:
                seen.append((tuple(request.tokens), width, tuple(proposal.tokens)))
        return found

    with patch.object(proposer, "propose", propose):
        yield seen


def _greedy_row(num_tokens: int, drafted: Sequence[int]) -> SamplingRow:
    params = SamplingParams(temperature=0)
    return SamplingRow(params=params, seed=0, position=num_tokens + len(drafted))


@contextmanager
def judged(heard: Callable[[torch.Tensor, VerifyRequest], None]) -> Iterator[None]:
    """While it is entered `heard` gets the logits [R, V] and the request of residual acceptance."""
    real = acceptance.ResidualAcceptance.judge

    def judge(this: Any, logits: torch.Tensor, request: VerifyRequest) -> list[int]:
        heard(logits, request)
        return real(this, logits, request)

    with patch.object(acceptance.ResidualAcceptance, "judge", judge):
        yield


def committed_probs(
    logits: torch.Tensor, request: VerifyRequest, p: torch.Tensor, q: torch.Tensor
) -> torch.Tensor:
    """[V] float64, the law of the token that follows when drafts are drawn from q.

    logits, request: that were judged. p: the target's law. Of every draft residual acceptance
    itself is asked: for which uniform numbers it is accepted, by bisection, and from which law a
    token is drawn in its place.
    """
    sampler: Any = _FixedProbs(p)
    rule = acceptance.ResidualAcceptance(sampler)
    probs = torch.zeros_like(p)
    uniforms, drawn = [0.0], [p]

    def draw(left: torch.Tensor, row: Any) -> int:
        drawn[0] = left
        return 0

    def accepted(asked: VerifyRequest, uniform: float) -> bool:
        uniforms[0] = uniform
        return len(rule.judge(logits[:2], asked)) == 2

    with patch.multiple(acceptance, uniform_of=lambda row: uniforms[0], _draw=draw):
        for draft in q.nonzero()[:, 0].tolist():
            one = Proposal(tokens=(draft,), probs=q[None])
            asked = attrs.evolve(request, rows=request.rows[:2], draft=one)
            chance = 1.0 if accepted(asked, 1.0) else _largest(partial(accepted, asked))
            probs[draft] += q[draft] * chance
            if chance < 1.0:
                probs += q[draft] * (1 - chance) * drawn[0]
    return probs


def _largest(accepted: Callable[[float], bool]) -> float:
    """The largest number that is accepted of those from 0 to 1, where 1 is not."""
    low, high = 0.0, 1.0
    while high - low > CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return low


@attrs.frozen
class _FixedProbs:
    """A sampler whose target has the same probabilities in every row. one_row: [V]."""

    one_row: torch.Tensor

    def probs(self, logits: torch.Tensor, rows: Sequence[Any]) -> torch.Tensor:
        """[R, V], one row as the other."""
        return self.one_row.expand(len(rows), -1)

    def sample(self, logits: torch.Tensor, rows: Sequence[Any]) -> Any:
        """The bonus token, which nobody looks at."""
        return attrs.make_class("Sampled", {"token_ids": attrs.field()})(torch.zeros(1).long())
