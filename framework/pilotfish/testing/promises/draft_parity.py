"""The promise that drafts are those of their format, by an oracle that the drafter's author names.

Knows: when two tokens tie but for rounding. Does not know: how drafts are made.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from pilotfish.plugin_specs import resolve
from pilotfish.testing import listeners
from pilotfish.testing.draft_oracle import DraftOracle
from pilotfish.testing.drafted import NOTHING, texts, under_test, want_own_drafts
from pilotfish.testing.near_ties import JUMP
from pilotfish.testing.outcome import NotKnown, want
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

MOST = 32
"""Proposals that are judged, drawn from all: each costs the oracle passes of the target."""


def drafts_are_the_oracles(subject: Subject) -> None:
    """What is drafted greedily in float32, anywhere in any text, is what the oracle drafts."""
    want_own_drafts(subject)
    oracle = _oracle_of(subject)
    works = [
        work
        for seed, length in enumerate((1, 2 * PAGE_SIZE + 1, LONG))
        for work in texts(subject, length, seed)
    ]
    llm = under_test(subject, "float32", max_batch_tokens=13)
    with listeners.greedy_drafts(llm) as seen:
        llm.generate([work.prompt for work in works], [work.params for work in works])
    if not any(drafted for _, _, drafted in seen):
        raise NotKnown(NOTHING)
    for tokens, width, drafted in random.Random(0).sample(seen, min(MOST, len(seen))):
        _want_like(oracle, tokens, width, drafted)


def _oracle_of(subject: Subject) -> DraftOracle:
    prepared = subject.prepared("float32", draft=subject.draft, speculative=subject.speculative)
    spec, plugin = prepared.route.speculator, prepared.route.speculator_plugin
    assert spec is not None, "a drafter is asked for"
    assert plugin is not None
    if spec.draft_oracle is None:
        raise NotKnown(
            f"nothing says what {spec.method!r} should draft: name a `draft_oracle` in its "
            "SpeculatorSpec, (target's folder, draft's folder) -> pilotfish.testing.DraftOracle"
        )
    draft = prepared.pipeline_config.draft_model
    folder = None if draft is None else Path(draft.path)
    made: DraftOracle = resolve(spec.draft_oracle, plugin)(prepared.checkpoint.path, folder)
    return made


def _want_like(
    oracle: DraftOracle, tokens: Sequence[int], width: int, drafted: Sequence[int]
) -> None:
    """Raises Broken unless the oracle drafts the same, or nearly ties wherever it does not."""
    wanted = list(oracle.drafts(tokens, width))
    if list(drafted) == wanted or _tie(oracle, tokens, drafted, wanted):
        return
    want(False, f"after {len(tokens)} tokens {list(drafted)} drafted", f"{wanted}, as its oracle")


def _tie(
    oracle: DraftOracle, tokens: Sequence[int], drafted: Sequence[int], wanted: Sequence[int]
) -> bool:
    """Whether each token is the likeliest but for what rounding does to the oracle's own scores."""
    if len(drafted) != len(wanted):
        return False
    exact = oracle.scores(tokens, drafted, torch.float64)
    eager = oracle.scores(tokens, drafted, torch.float32)
    if exact is None or eager is None:
        return False
    error = (eager.double() - exact)[exact.isfinite()].square().mean().sqrt()
    taken = exact.gather(1, torch.tensor([list(drafted)]).T)[:, 0]
    # Two scores of ours are off by JUMP times that each, at most.
    return bool((exact.amax(1) - taken <= 2 * JUMP * error).all())
