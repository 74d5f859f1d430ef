"""The n-gram drafter against a brute-force search, and on a real model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish import LLM, SamplingParams, SpeculativeConfig
from pilotfish.config import PipelineConfig
from pilotfish.errors import RouteError
from pilotfish.kernels import KernelBackend
from pilotfish.plugins import load_registry
from pilotfish.speculation import DraftBatch, DraftRequest, ProposerSetup
from pilotfish_ngram.config import NgramConfig
from pilotfish_ngram.proposer import NgramProposer


def proposer() -> NgramProposer:
    unused: Any = None
    return NgramProposer(
        ProposerSetup(
            pipeline_config=PipelineConfig(model=unused),
            config=NgramConfig(),
            backend=KernelBackend("torch"),
            device=unused,
            target=unused,
            registry=load_registry(),
        )
    )


def draft(drafter: NgramProposer, tokens: Sequence[int], width: int, name: str = "a") -> list[int]:
    request = DraftRequest(
        request_id=name,
        tokens=tokens,
        num_before=0,
        num_new=len(tokens) - 1,
        num_draft_tokens=width,
        sampling_row=lambda _: pytest.fail("an n-gram has no law"),
    )
    unused: Any = None
    batch = DraftBatch(requests=[request], features=None, kv_inputs=unused)
    return list(drafter.propose(batch)[0].tokens)


def searched(tokens: Sequence[int], width: int) -> list[int]:
    """The longest end of 5 to 2 tokens that came before; what followed it last, round and round."""
    for length in (5, 4, 3, 2):
        for end in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[end - length : end]) == list(tokens[-length:]):
                follow = list(tokens[end:])
                return [follow[i % len(follow)] for i in range(width)]
    return []


@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 40), max_size=5),
    width=st.integers(1, 6),
)
def test_proposals_are_those_of_a_search(tokens: list[int], cuts: list[int], width: int) -> None:
    """Also when the text grew in steps of any size, and beside another request."""
    drafter = proposer()
    for length in sorted({min(cut, len(tokens)) for cut in [*cuts, len(tokens)]}):
        assert draft(drafter, tokens[:length], width) == searched(tokens[:length], width)
        draft(drafter, [1, 2] * length, width, name="b")
    drafter.release("a")
    assert draft(drafter, tokens[::-1], width) == searched(tokens[::-1], width)


def test_a_width_of_nothing_proposes_nothing() -> None:
    assert draft(proposer(), [1, 2, 1, 2], 0) == []


def test_copied_text_is_drafted_and_the_text_is_plain_decodings() -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    text = "1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4"
    plain = LLM("demo").generate(text, params)[0]
    config = SpeculativeConfig(method="ngram", width=4)
    ours = LLM("demo", speculative=config).generate(text, params)[0]
    assert ours.token_ids == plain.token_ids
    assert ours.speculative is not None
    assert ours.speculative["mean_committed_per_step"] > 3


def test_a_draft_checkpoint_is_refused() -> None:
    with pytest.raises(RouteError, match="'ngram' does not read a draft"):
        LLM("demo", draft="demo", speculative="ngram")
