"""The block driver on toys: texts of the definition, and a draft that reads only what counts."""

from __future__ import annotations

import pytest

from pilotfish.config import SamplingParams
from pilotfish.speculation.width import FixedWidth
from speculation.toy_block import ToyBlock, block_drafting
from support.engine_strategies import Job
from support.toy_model import ToyEngine, naive_answer

WORK: list[Job] = [
    ([7] * 9, SamplingParams(temperature=0, max_tokens=17, ignore_eos=True)),
    ([5, 6], SamplingParams(temperature=0.8, seed=1, max_tokens=17, ignore_eos=True)),
    ([7] * 8 + [3], SamplingParams(temperature=0, max_tokens=12, frequency_penalty=0.7)),
    ([2, 3, 5, 7, 11], SamplingParams(temperature=0.7, top_k=5, seed=4, max_tokens=9)),
]


def check(engine: ToyEngine, draft: ToyBlock) -> None:
    """Texts are those of the definition, twice: the second time with cached prefixes."""
    for _ in range(2):
        for job, output in zip(WORK, engine.run(WORK), strict=True):
            assert list(output.token_ids) == naive_answer(*job)[0]
    assert draft.broken == 0
    assert draft.blocks


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("wrong", [0, 3])
@pytest.mark.parametrize("width", [1, 4, 9])
def test_texts_and_rows(width: int, wrong: int, anchor: bool) -> None:
    draft = ToyBlock(wrong_one_in=wrong, samples_anchor=anchor)
    drafting = block_drafting(draft, policy=FixedWidth(width))
    check(ToyEngine(drafting=drafting, max_batch_tokens=13), draft)
    assert max(max(counts) for counts in draft.blocks) == width + (not anchor)


def test_blocks_of_several_widths_share_a_pass() -> None:
    """Near its end a request's block is cut to the room that is left."""
    draft = ToyBlock(wrong_one_in=3)
    check(ToyEngine(drafting=block_drafting(draft), max_batch_tokens=13), draft)
    assert any(len(set(counts)) > 1 for counts in draft.blocks)


@pytest.mark.parametrize("limit", [4, 9, 14])
def test_drafting_pauses_at_the_last_position(limit: int) -> None:
    draft = ToyBlock(wrong_one_in=3, max_positions=limit)
    check(ToyEngine(drafting=block_drafting(draft), max_batch_tokens=6), draft)


def test_a_right_draft_is_accepted_whole() -> None:
    draft = ToyBlock()
    engine = ToyEngine(drafting=block_drafting(draft))
    [output] = engine.run([([7] * 5, SamplingParams(temperature=0, max_tokens=21))])
    assert output.speculative is not None
    assert output.speculative["accepted"] == output.speculative["drafted"] == 16
    assert output.speculative["mean_committed_per_step"] == 5.0
