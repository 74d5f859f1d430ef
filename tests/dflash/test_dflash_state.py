"""The draft's cache after every step of any history: the rows that count, and nothing else read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dflash.conftest import Pair
from dflash.driver import Drafted, Driver, Move, Recorder, load
from dflash.histories import play
from pilotfish.speculation import ContextRows
from pilotfish.speculation import block as driver_module
from pilotfish.speculation.draft_config import DRAFT_CACHE

STEPS = 7


@pytest.fixture(scope="module")
def loaded(pair: Pair) -> Callable[[str], Recorder]:
    """Case -> its draft, loaded once."""
    kept: dict[str, Recorder] = {}

    def get(case: str) -> Recorder:
        if case not in kept:
            kept[case] = load(*pair(case))
        return kept[case]

    return get


def from_scratch(driver: Driver, name: str) -> torch.Tensor:
    """[L, p, 2, K, H]: all committed features taken in at once, into pages of their own."""
    one, proposer = driver.running[name], driver.proposer
    tokens = one.tokens[: one.num_committed]
    fresh = Driver(proposer, page_size_tokens=5)
    fresh.add(name, tokens)
    fresh.states.reserve(name, tokens)
    fresh.running[name].context.num_scheduled = len(tokens)
    features = fresh._target_pass([name], [len(tokens)])
    kv = fresh.states.kv_inputs([name], [len(tokens)], DRAFT_CACHE)
    context = proposer.network.project_target_hidden(features)
    offsets = torch.tensor([0, len(tokens)], dtype=torch.int32)
    proposer.network.materialize_kv(context, offsets, kv, [one.prompt_length])
    fresh.states.commit(name, len(tokens))
    fresh.running[name].context.num_computed = len(tokens)
    return fresh.rows(name)


@settings(max_examples=12)
@given(
    case=st.sampled_from(("plain", "mixed", "unsorted", "longrope", "speculators-anchor")),
    seed=st.integers(0, 1 << 20),
)
def test_committed_rows_are_those_of_the_features_from_scratch(
    loaded: Callable[[str], Recorder], case: str, seed: int
) -> None:
    """Bit for bit, after every step: drawn chunks, widths, accepts and batches."""

    def after(driver: Driver) -> None:
        driver.states.check()
        for name, one in driver.running.items():
            if one.num_committed:
                assert torch.equal(driver.rows(name), from_scratch(driver, name))

    play(loaded(case), seed, STEPS, after=after)


@settings(max_examples=12)
@given(case=st.sampled_from(("plain", "mixed", "not-causal")), seed=st.integers(0, 1 << 20))
def test_rows_of_blocks_and_rejected_rows_are_never_read(
    loaded: Callable[[str], Recorder], case: str, seed: int
) -> None:
    """Rows that do not count, and pages of nobody, are NaN: none of it comes out anywhere."""

    def after(driver: Driver) -> None:
        blocks = driver.states.paged_cache(DRAFT_CACHE).blocks
        rows = sum(one.num_committed for one in driver.running.values())
        for layer in blocks:
            assert int(layer.isfinite().all(-1).all(-1).all(-1).sum()) == rows

    found: list[Drafted] = play(loaded(case), seed, STEPS, after=after)
    assert all(one.logits.isfinite().all() for one in found)


def test_a_request_alone_drafts_what_it_drafts_among_others(
    loaded: Callable[[str], Recorder],
) -> None:
    """Features are gathered per request, and blocks of different widths share a pass."""
    proposer = loaded("mixed")
    together = play(proposer, seed=5, num_steps=12)
    assert len({len(one.proposal.tokens) for one in together}) > 3
    for one in together[:20]:
        driver = Driver(proposer)
        driver.add("alone", one.tokens[: one.prompt_length])
        alone = alone_after(driver, one)
        assert tuple(alone.proposal.tokens) == tuple(one.proposal.tokens)
        assert torch.equal(alone.logits, one.logits)


def alone_after(driver: Driver, one: Drafted) -> Drafted:
    """The prompt in one chunk, then every later token a step of its own."""
    width = len(one.proposal.tokens)
    rest = list(one.tokens[one.prompt_length :])
    moves = [Move(rows=one.prompt_length, next_token=rest[0])]
    moves += [Move(next_token=token) for token in rest[1:]]
    moves[-1].width = width
    for move in moves:
        found = driver.step({"alone": move})
    return found[0]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_long_chunks_are_taken_in_piece_by_piece(
    loaded: Callable[[str], Recorder], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """However long a chunk is, no more than MOST_CONTEXT_ROWS rows go through fc at once."""
    proposer = loaded("plain")
    sizes: list[int] = []
    real = proposer.take_in

    def spy(rows: ContextRows) -> None:
        sizes.append(rows.features.shape[0])
        real(rows)

    def after(driver: Driver) -> None:
        for name, one in driver.running.items():
            if one.num_committed:
                assert torch.equal(driver.rows(name), from_scratch(driver, name))

    monkeypatch.setattr(driver_module, "MOST_CONTEXT_ROWS", most)
    monkeypatch.setattr(proposer, "take_in", spy)
    play(proposer, seed=2, num_steps=5, after=after)
    assert max(sizes) <= most
    assert sum(sizes) > 20


def test_an_exception_leaves_target_and_draft_at_one_length(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised at every call of a step; the step again gives what it would have given."""
    proposer = load(*pair("plain"))
    for name in ("take_in", "forward"):
        driver, calm = Driver(proposer), Driver(proposer)
        for one in (driver, calm):
            one.add("a", [3, 1, 4, 1, 5])
        move = Move(rows=5, next_token=9, width=4)

        def fail(*_: object) -> None:
            raise RuntimeError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(proposer, name, fail)
            with pytest.raises(RuntimeError, match="planted"):
                driver.step({"a": move})
        assert driver.states.num_committed("a") == 0
        driver.running["a"].context.tokens = [3, 1, 4, 1, 5]
        [again] = driver.step({"a": move})
        [wanted] = calm.step({"a": move})
        assert torch.equal(again.logits, wanted.logits)
        assert torch.equal(driver.rows("a"), calm.rows("a"))


def test_a_page_is_a_function_of_its_key(loaded: Callable[[str], Recorder]) -> None:
    """A prefix hit restores the draft's rows of full pages; no row depends on a later token."""
    proposer = loaded("plain")
    assert proposer.config.lookahead == 0
    text = [random.Random(1).randrange(90) for _ in range(11)]
    driver = Driver(proposer, page_size_tokens=4, prefix_caching=True)
    driver.add("first", text)
    driver.step({"first": Move(rows=11, next_token=1, width=3)})
    driver.states.release("first")
    del driver.running["first"]
    other = [*text[:8], 77, 78]
    hit = driver.add("second", other)
    assert hit.num_committed == 8
    [found] = driver.step({"second": Move(rows=2, next_token=1, width=3)})
    cold = Driver(proposer, page_size_tokens=4)
    cold.add("second", other)
    [wanted] = cold.step({"second": Move(rows=10, next_token=1, width=3)})
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(driver.rows("second"), cold.rows("second"))
