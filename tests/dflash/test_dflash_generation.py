"""Whole generations of the engine against the oracle: proposals, tokens, acceptance by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from dflash.checkpoints import CASES, VOCAB
from dflash.conftest import Pair
from dflash.oracle import NaiveDraft, NaiveStep, generate, target_of
from pilotfish import LLM, RequestOutput, SamplingParams, SpeculativeConfig
from pilotfish.speculation import DraftBatch, Proposal

PROMPTS = [[(7 * i + 3) % VOCAB for i in range(20)], [11], [5, 17, 40, 5]]
NUM_TOKENS = 26
GENERATIONS = [
    *(("plain", width) for width in (1, 4, 7, 15)),
    *(("mixed", width) for width in (3, 7)),
    *(("sliding", width) for width in (5, 15)),
    *(("not-causal", 6), ("unsorted", 4), ("longrope", 5)),
    *(("speculators", 5), ("speculators-anchor", 6), ("speculators-small", 3)),
]


class Drafts:
    """Everything that an engine's drafter proposes, by place of the request."""

    def __init__(self, llm: LLM) -> None:
        self.proposed: dict[str, list[list[int]]] = {}
        proposer: Any = llm.proposer
        self._propose = proposer.propose
        proposer.propose = self._note

    def _note(self, batch: DraftBatch) -> Sequence[Proposal]:
        found: Sequence[Proposal] = self._propose(batch)
        for request, proposal in zip(batch.requests, found, strict=True):
            if proposal.tokens:
                self.proposed.setdefault(request.request_id, []).append(list(proposal.tokens))
        return found

    def in_order(self) -> list[list[list[int]]]:
        """Requests in the order of the prompts: that is the order of their first drafts."""
        return list(self.proposed.values())


Generated = Callable[[str, int], tuple[list[RequestOutput], Drafts]]


@pytest.fixture(scope="module")
def generated(pair: Pair) -> Generated:
    """Case and width -> what the engine says, and what it drafted; once."""

    @cache
    def get(case: str, width: int) -> tuple[list[RequestOutput], Drafts]:
        target, draft = pair(case)
        spec = SpeculativeConfig(method="dflash", width=width)
        llm = LLM(str(target), draft=str(draft), speculative=spec, dtype="float32")
        drafts = Drafts(llm)
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        return llm.generate(PROMPTS, params), drafts

    return get


def counts(steps: Sequence[NaiveStep]) -> list[float]:
    """Share of the drafts at each place that counted."""
    drafted = max(len(step.proposed) for step in steps)
    return [
        sum(step.accepted > place for step in steps)
        / sum(len(step.proposed) > place for step in steps)
        for place in range(drafted)
    ]


@pytest.mark.parametrize(("case", "width"), GENERATIONS)
def test_generations_are_those_of_the_oracle(
    pair: Pair, generated: Generated, case: str, width: int
) -> None:
    target, _ = pair(case)
    outputs, drafts = generated(case, width)
    naive = NaiveDraft(CASES[case], target_of(target, torch.float64))
    for prompt, output, proposed in zip(PROMPTS, outputs, drafts.in_order(), strict=True):
        steps = generate(naive, prompt, NUM_TOKENS, width)
        assert list(output.token_ids) == [token for step in steps for token in step.committed]
        assert proposed == [step.proposed for step in steps if step.proposed]
        assert output.speculative is not None
        assert output.speculative["drafted"] == sum(len(step.proposed) for step in steps)
        assert output.speculative["accepted"] == sum(step.accepted for step in steps)
        assert output.speculative["accepted_per_position"] == pytest.approx(counts(steps))


def test_the_histories_above_have_accepts_and_rejects(generated: Generated) -> None:
    """Otherwise rollback would not be in them."""
    found = []
    for case, width in GENERATIONS:
        outputs, _ = generated(case, width)
        for output in outputs:
            assert output.speculative is not None
            found.append((output.speculative["drafted"], output.speculative["accepted"]))
    assert sum(0 < accepted < drafted for drafted, accepted in found) > len(found) // 2
