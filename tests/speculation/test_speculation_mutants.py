"""Bugs planted in the step, its rules and the sequential driver: each turns a check red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from pilotfish.config import SamplingParams
from pilotfish.engine.speculative import Speculation
from pilotfish.engine.step_result import StepResult
from pilotfish.speculation import BlockProposer, SequentialProposer, acceptance
from pilotfish.speculation.width import FixedWidth
from pilotfish.testing import drafters
from speculation.toy_block import ToyBlock, block_drafting
from speculation.toy_draft import ToyDraft, ToyShiftedDraft, drafting
from support.engine_strategies import Job
from support.toy_model import Drafting, ToyEngine, naive_answer

Patch = pytest.MonkeyPatch

WORK: list[Job] = [
    ([7] * 9, SamplingParams(temperature=0, max_tokens=17, ignore_eos=True)),
    ([5, 6], SamplingParams(temperature=0.8, seed=1, max_tokens=17, ignore_eos=True)),
    ([7] * 8 + [3], SamplingParams(temperature=0, max_tokens=12, frequency_penalty=0.7)),
]


def check_texts(engine: ToyEngine) -> None:
    """Texts are those of the definition, twice: the second time with cached prefixes."""
    for _ in range(2):
        for job, output in zip(WORK, engine.run(WORK), strict=True):
            assert list(output.token_ids) == naive_answer(*job)[0]


def with_sequential_drafts() -> None:
    """A draft with caches of its own and a short context; it checks every row that it reads."""
    for kind in (ToyDraft, ToyShiftedDraft):
        for limit in (None, 12):
            draft = kind(wrong_one_in=3, max_positions=limit)
            check_texts(ToyEngine(drafting=drafting(draft), max_batch_tokens=6))
            assert draft.broken == 0


def with_block_drafts() -> None:
    """A draft that proposes whole blocks, and checks every row that it reads."""
    for anchor in (False, True):
        for limit in (None, 12):
            draft = ToyBlock(wrong_one_in=3, max_positions=limit, samples_anchor=anchor)
            engine = ToyEngine(drafting=block_drafting(draft), max_batch_tokens=6)
            check_texts(engine)
            assert draft.broken == 0
    # A right draft counts whole, also where the widths of a batch differ near the ends.
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (21, 8, 15)]
    jobs = [([7] * 5, params[0]), ([3], params[1]), ([2, 9], params[2])]
    for output in ToyEngine(drafting=block_drafting(ToyBlock())).run(jobs):
        assert output.speculative is not None
        assert output.speculative["accepted"] == output.speculative["drafted"] > 0


def with_scripts() -> None:
    """Drafts that are wrong, and drafts that are no tokens."""
    for script in (drafters.repeats, drafters.out_of_vocabulary(257)):
        proposer = drafters.ScriptedProposer()
        proposer.script = script
        check_texts(ToyEngine(drafting=Drafting(proposer=proposer, policy=FixedWidth(3))))


def with_zero_probabilities() -> None:
    """A token that cannot come is never accepted, whatever the draft says of it."""
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    for q in (torch.eye(3).double()[2], torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)):
        kept = q * acceptance.acceptance_probability(p, q)
        assert float(kept[2]) == 0.0


@attrs.frozen
class Mutant:
    """check: passes without the bug. owner, name: what `make` makes something wrong of."""

    check: Callable[[], None]
    owner: Any
    name: str
    make: Callable[[Any], Any]


def without_skip(real: Any) -> Any:
    return lambda self, *args, skip, **options: real(self, *args, skip=None, **options)


def one_row_more(real: Any) -> Any:
    def take(self: Any, draft: Any, accepted: Any) -> None:
        num_scheduled = self.num_rows
        real(self, draft, accepted)
        self.num_rows = min(self.num_rows + 1, num_scheduled)

    return take


def features_of_all_rows(real: Any) -> Any:
    return lambda requests, results, hidden: hidden


def accept_zeros(real: Any) -> Any:
    return lambda p, q: torch.where(q > 0, (p / q).clamp(max=1.0), torch.ones_like(p)).clamp(0.1)


def blocks_after_the_rows_of_the_pass(real: Any) -> Any:
    """The block is put where the verify pass's rows were, not after those that count."""

    def block_rows(self: Any, batch: Any, live: Any) -> Any:
        view = batch.kv_inputs
        without = attrs.evolve(
            batch,
            kv_inputs=lambda ids, counts, cache_name, skip: view(
                ids, counts, cache_name, [0] * len(ids)
            ),
        )
        return real(self, without, live)

    return block_rows


def one_width_for_all(real: Any) -> Any:
    """Logit rows are found as if every block were as wide as the first."""

    def live(self: Any, batch: Any) -> Any:
        found = real(self, batch)
        return [attrs.evolve(one, first=i * found[0].width) for i, one in enumerate(found)]

    return live


MUTANTS: dict[str, Mutant] = {
    "3 a rejected row stays committed": Mutant(with_scripts, StepResult, "take", one_row_more),
    "13 rows of a chunk that is not the last are left out of the draft": Mutant(
        with_sequential_drafts,
        SequentialProposer,
        "_num_first_rows",
        lambda real: lambda self, request: real(self, request) if request.num_draft_tokens else 0,
    ),
    "16 drafting goes on past the draft's last position": Mutant(
        with_sequential_drafts,
        SequentialProposer,
        "_width",
        lambda real: lambda self, request: request.num_draft_tokens,
    ),
    "21 a token of probability zero is accepted": Mutant(
        with_zero_probabilities, acceptance, "acceptance_probability", accept_zeros
    ),
    "35 the draft gets features of rows that were rejected": Mutant(
        with_sequential_drafts,
        Speculation,
        "draft",
        lambda real: (
            lambda self, requests, results, outputs, *rest: real(
                self,
                requests,
                results,
                attrs.evolve(outputs, hidden_states=outputs.hidden_states.flip(0)),
                *rest,
            )
        ),
    ),
    "13 rows of a chunk that is not the last are left out of a block draft": Mutant(
        with_block_drafts,
        BlockProposer,
        "_num_context_rows",
        lambda real: lambda self, request: real(self, request) if request.num_draft_tokens else 0,
    ),
    "16 blocks go on past the draft's last position": Mutant(
        with_block_drafts,
        BlockProposer,
        "_width",
        lambda real: lambda self, request: request.num_draft_tokens,
    ),
    "28 a block draft keeps the rows that the block wrote": Mutant(
        with_block_drafts,
        BlockProposer,
        "_num_context_rows",
        lambda real: (
            lambda self, request: (
                min(1, real(self, request)) if request.num_before else real(self, request)
            )
        ),
    ),
    "35 logit rows of a block are found by the first request's width": Mutant(
        with_block_drafts, BlockProposer, "_live", one_width_for_all
    ),
    "37 a block stands where the rows of the pass were": Mutant(
        with_block_drafts, BlockProposer, "_block_rows", blocks_after_the_rows_of_the_pass
    ),
    "37 later draft passes reuse the first pass's places": Mutant(
        with_sequential_drafts, SequentialProposer, "_rows", without_skip
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_seen(name: str, monkeypatch: Patch) -> None:
    mutant = MUTANTS[name]
    mutant.check()
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.make(getattr(mutant.owner, mutant.name)))
    with pytest.raises(Exception):  # noqa: B017, PT011 - a wrong text, a broken row, or a crash
        mutant.check()
