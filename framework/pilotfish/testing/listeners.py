"""What the promises about drafts listen with: proposals, judgements, and a call that fails.

Knows: how a loaded engine is overheard. Does not know: what is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch

from pilotfish.config import SamplingParams
from pilotfish.engine import LLM
from pilotfish.engine.proposals import fault_of
from pilotfish.sampling import SamplingRow
from pilotfish.speculation import DraftBatch, Proposal, acceptance
from pilotfish.speculation.acceptance import VerifyRequest
from pilotfish.testing import drafters
from pilotfish.testing.outcome import Broken

ASKED = ("embed", "lm_head")
"""What a drafter may call of its target."""
Heard = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens so far, and what was drafted after them."""


class FaultyOnce:
    """A proposer whose `propose` raises once."""

    def __init__(self, proposer: Any, at: int, after: bool) -> None:
        self._real, self._at, self._after = proposer.propose, at, after
        self._calls = 0

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """As the real one, but for the one call."""
        self._calls += 1
        hit = self._calls == self._at
        if hit and not self._after:
            raise drafters.DrafterFailedError("planted before a draft call")
        found: Sequence[Proposal] = self._real(batch)
        if hit:
            raise drafters.DrafterFailedError("planted after a draft call")
        return found


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
        proposer: Any = self._proposer
        proposer.propose = self._real

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
            self._judge(request.width, proposal.tokens)
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

        made = {name: noting(name) for name in ASKED if hasattr(self._target, name)}
        before = {name: value for name, value in vars(self._target).items() if name in made}
        vars(self._target).update(made)
        try:
            yield
        finally:
            for name in made:
                del vars(self._target)[name]
            vars(self._target).update(before)

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


class GreedyDrafts:
    """While it is entered drafts are taken greedily, whatever the answer's own options say.

    seen: (tokens so far, tokens asked for, drafted tokens) where any were asked for.
    """

    def __init__(self, llm: LLM) -> None:
        self._proposer: Any = llm.proposer
        self.seen: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []

    def __enter__(self) -> GreedyDrafts:
        real = self._proposer.propose

        def propose(batch: DraftBatch) -> Sequence[Proposal]:
            requests = [
                attrs.evolve(one, sampling_row=partial(_greedy_row, len(one.tokens)))
                for one in batch.requests
            ]
            found: Sequence[Proposal] = real(attrs.evolve(batch, requests=requests))
            for request, proposal in zip(requests, found, strict=True):
                if request.width:
                    heard = tuple(request.tokens), request.width, tuple(proposal.tokens)
                    self.seen.append(heard)
            return found

        self._proposer.propose = propose
        return self

    def __exit__(self, *_: object) -> None:
        del self._proposer.propose


def _greedy_row(num_tokens: int, drafted: Sequence[int]) -> SamplingRow:
    params = SamplingParams(temperature=0)
    return SamplingRow(params=params, seed=0, position=num_tokens + len(drafted))


class Judged:
    """While it is entered it listens to residual acceptance; afterwards that can be asked.

    heard: called with each request that is judged. first: the logits [R, V] and the request that
    were judged first; None where none was.
    """

    def __init__(self, heard: Callable[[VerifyRequest], None]) -> None:
        self.first: tuple[torch.Tensor, VerifyRequest] | None = None
        self._heard = heard

    def __enter__(self) -> Judged:
        rule: Any = acceptance.ResidualAcceptance
        self._real = real = rule.judge

        def judge(this: Any, logits: torch.Tensor, request: VerifyRequest) -> list[int]:
            if self.first is None:
                self.first = logits.clone(), request
            self._heard(request)
            found: list[int] = real(this, logits, request)
            return found

        rule.judge = judge
        return self

    def __exit__(self, *_: object) -> None:
        rule: Any = acceptance.ResidualAcceptance
        rule.judge = self._real

    def committed_probs(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """[V] float64, the law of the token that follows when drafts are drawn from q.

        Of every draft the rule itself is asked: for which uniform numbers it is accepted, by
        bisection, and from which law a token is drawn in its place.
        """
        assert self.first is not None
        logits, request = self.first
        one = attrs.evolve(request, rows=request.rows[:2], drafts=(0,), probs=q[None])
        sampler: Any = _FixedProbs(p)
        rule = acceptance.ResidualAcceptance(sampler)
        probs = torch.zeros_like(p)
        drawn: list[torch.Tensor] = []
        real = acceptance._uniform, acceptance._draw
        module: Any = acceptance

        def draw(left: torch.Tensor, row: Any) -> int:
            drawn.append(left)
            return 0

        def accepted(draft: int, uniform: float) -> bool:
            module._uniform = lambda row: uniform
            found = rule.judge(logits[:2], attrs.evolve(one, drafts=(draft,)))
            return len(found) == 2

        try:
            module._draw = draw
            for draft in q.nonzero()[:, 0].tolist():
                low, high = 0.0, 1.0
                for _ in range(50):
                    middle = (low + high) / 2
                    low, high = (middle, high) if accepted(draft, middle) else (low, middle)
                chance = 1.0 if accepted(draft, 1.0) else low
                probs[draft] += q[draft] * chance
                if chance < 1.0:
                    probs += q[draft] * (1 - chance) * drawn[-1]
        finally:
            module._uniform, module._draw = real
        return probs


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
