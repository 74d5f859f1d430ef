"""Adversarial drafters: what a drafter may do at worst; no text may change because of one.

Knows: what each proposes. Does not know: targets. They keep no caches and need no draft checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar

from pilotfish.engine import LLM
from pilotfish.registry import Plugin, SpeculatorSpec
from pilotfish.speculation import (
    DraftBatch,
    DraftRequest,
    Proposal,
    ProposerSetup,
    StatelessConfig,
)
from pilotfish.weights import WeightSource

METHOD = "scripted"

Script = Callable[[DraftRequest], Sequence[int]]
"""What is proposed for a request."""


class DrafterFailedError(Exception):
    """Raised by the drafter that raises."""


class ScriptedProposer:
    """Proposes what `script` says; nothing at first."""

    config_class: ClassVar[type[StatelessConfig]] = StatelessConfig

    def __init__(self, setup: ProposerSetup | None = None) -> None:
        self.script: Script = silent

    def load_model(self, weights: WeightSource | None) -> None:
        """There is nothing to load."""

    def propose(self, batch: DraftBatch) -> Sequence[Proposal]:
        """One proposal a request."""
        return [Proposal(tokens=tuple(self.script(request))) for request in batch.requests]

    def release(self, request_id: str) -> None:
        """Nothing is kept."""


def scripted_plugin() -> Plugin:
    """A plugin whose method `METHOD` is a ScriptedProposer, for a registry of tests."""
    spec = SpeculatorSpec(
        method=METHOD,
        config="pilotfish.speculation:StatelessConfig",
        model=f"{__name__}:ScriptedProposer",
        needs=frozenset({"verify"}),
    )
    return Plugin(name="scripted", speculators=(spec,))


def play(llm: LLM, script: Script) -> None:
    """Gives an LLM of the method `METHOD` its script."""
    proposer = llm.proposer
    assert isinstance(proposer, ScriptedProposer), f"the drafter is {type(proposer).__name__}"
    proposer.script = script


# Scripts


def silent(request: DraftRequest) -> Sequence[int]:
    """Proposes nothing."""
    return ()


def repeats(request: DraftRequest) -> Sequence[int]:
    """The newest token over and over."""
    return [request.tokens[-1]] * request.num_draft_tokens


def raises(request: DraftRequest) -> Sequence[int]:
    """Always fails."""
    raise DrafterFailedError(f"the drafter failed for request {request.request_id!r}")


def random_tokens(vocab_size: int, seed: int = 0) -> Script:
    """Any tokens, of any number up to one more than asked; the same for the same text."""

    def script(request: DraftRequest) -> Sequence[int]:
        drawn = random.Random(f"{seed},{list(request.tokens)}")
        count = drawn.randrange(request.num_draft_tokens + 2)
        return [drawn.randrange(vocab_size) for _ in range(count)]

    return script


def out_of_vocabulary(vocab_size: int) -> Script:
    """Ids that are no tokens, one of them after a good one."""

    def script(request: DraftRequest) -> Sequence[int]:
        wrong = (-1, vocab_size, 2**40)[len(request.tokens) % 3]
        return [request.tokens[-1], wrong, 0][: request.num_draft_tokens]

    return script


def known_texts(texts: Sequence[Sequence[int]]) -> Script:
    """Always right: goes on as the one of `texts` that begins with the tokens so far."""

    def script(request: DraftRequest) -> Sequence[int]:
        done, tokens = len(request.tokens), list(request.tokens)
        for text in texts:
            if list(text[:done]) == tokens:
                return list(text[done : done + request.num_draft_tokens])
        return ()

    return script


def always_wrong(right: Script, vocab_size: int) -> Script:
    """The token beside the right one, every time."""
    return right_until(0, right, vocab_size)


def right_until(place: int, right: Script, vocab_size: int) -> Script:
    """Right before `place` in the block, wrong from there on."""

    def script(request: DraftRequest) -> Sequence[int]:
        tokens = right(request)
        return [*tokens[:place], *((token + 1) % vocab_size for token in tokens[place:])]

    return script
