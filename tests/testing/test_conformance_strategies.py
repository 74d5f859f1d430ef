"""The public strategies: what they draw is valid, and drives the kit's sessions and oracles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pilotfish import SamplingParams, load_registry
from pilotfish.sampling import Sampler, TokenHistory
from pilotfish.testing import Subject, naive_token, tiny_subjects
from pilotfish.testing.strategies import (
    PageTable,
    Step,
    page_tables,
    ragged_batches,
    request_histories,
    sampling_params,
    tiny_examples,
)
from support.rows import row_after

VOCAB = 96
FEW = settings(max_examples=20, phases=[Phase.generate])


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    architecture, name = "LlamaForCausalLM", "plain"
    with tiny_subjects(architecture, load_registry(), only=[name]) as (found,):
        yield found


@FEW
@given(texts=ragged_batches(vocab_size=VOCAB))
def test_any_ragged_batch_equals_its_requests_alone(
    subject: Subject, texts: list[list[int]]
) -> None:
    session = subject.session()
    for index, tokens in enumerate(texts):
        session.add(str(index), tokens)
    together = session.run({str(index): len(tokens) for index, tokens in enumerate(texts)})
    for index, tokens in enumerate(texts):
        assert torch.equal(together[str(index)], subject.alone(tokens))


@FEW
@given(steps=request_histories(num_tokens=20))
def test_any_history_equals_the_committed_tokens(subject: Subject, steps: list[Step]) -> None:
    tokens = subject.tokens(20)
    whole, session, done = subject.alone(tokens), subject.session(), 0
    session.add("a", tokens)
    for step in steps:
        wrong = [token ^ 1 for token in tokens[: step.num_rejected]]
        session.contexts["a"].tokens = tokens[: done + step.num_kept] + wrong
        rows = {"a": step.num_kept + step.num_rejected}
        got = session.run(rows, keep={"a": step.num_kept})["a"][: step.num_kept]
        assert torch.equal(got, whole[done : done + step.num_kept])
        done += step.num_kept
    assert done == 20


@given(table=page_tables())
def test_page_tables_share_no_page(table: PageTable) -> None:
    used = [page for pages in table.pages for page in pages]
    assert len(set(used)) == len(used)
    assert all(0 <= page < table.num_pages for page in used)
    for pages, length in zip(table.pages, table.lengths, strict=True):
        assert len(pages) == -(-length // table.page_size)
    assert len({len(row) for row in table.padded}) == 1


@settings(max_examples=150)
@given(
    params=sampling_params(vocab_size=VOCAB),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    answer=st.lists(st.integers(0, VOCAB - 1), max_size=8),
    seed=st.integers(0, 1000),
)
def test_the_naive_token_is_the_samplers(
    params: SamplingParams, prompt: list[int], answer: list[int], seed: int
) -> None:
    logits = 3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    ends = params.stop_token_ids if len(answer) < params.min_tokens else ()
    history = TokenHistory(prompt, answer)
    row = row_after(history, params, seed=params.seed or 0, stop_ids=params.stop_token_ids)
    sampled = Sampler().sample(logits[None], [row])
    assert naive_token(logits, prompt, answer, params, ends) == int(sampled.token_ids)


def test_every_registered_architecture_has_an_example() -> None:
    drawn: set[str] = set()

    @settings(max_examples=200, database=None)
    @given(pair=tiny_examples())
    def draw(pair: tuple[str, str]) -> None:
        drawn.add(pair[0])

    draw()
    assert drawn == set(load_registry().architectures)
