"""What a draft's bits may depend on: its own request, not batch mates, chunks, pages or rejects."""

from __future__ import annotations

import pytest
import torch

from eagle.checkpoints import VOCAB
from eagle.conftest import Pair
from eagle.driver import Driver, Move, load
from pilotfish.speculation import Proposal
from pilotfish_eagle.model import EagleModel

DTYPES = ("float32", "bfloat16")
CASES = ("eagle1-deep", "eagle3")
PROMPTS = {"a": [5, 17, 3, 80, 41, 9, 22], "b": [64], "c": [30, 31, 2, 77]}
ACCEPTS = (2, 0, 1, 3, 0, 2)


def text(name: str, place: int) -> int:
    """What follows in a request's text, whatever was drafted."""
    return (place * 37 + len(PROMPTS[name]) * 11) % VOCAB


def move(driver: Driver, name: str, step: int, width: int = 3) -> Move:
    one = driver.running[name]
    if not one.num_committed:
        return Move(rows=len(PROMPTS[name]), next_token=text(name, 0), width=width)
    accept = min(ACCEPTS[step % len(ACCEPTS)], len(one.drafts))
    return Move(accept=accept, next_token=text(name, step), width=width)


def note(driver: Driver, names: list[str]) -> list[torch.Tensor]:
    logits = driver.eagle.logits  # type: ignore[attr-defined]
    return [torch.stack(logits[name]) for name in names if name in logits]


def alone(eagle: EagleModel, name: str, page_size: int, steps: int = 5) -> list[torch.Tensor]:
    driver = Driver(eagle, page_size_tokens=page_size)
    driver.add(name, PROMPTS[name])
    found = []
    for step in range(steps):
        driver.step({name: move(driver, name, step)})
        found += note(driver, [name])
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_batch_drafts_what_its_requests_draft_alone(pair: Pair, case: str, dtype: str) -> None:
    eagle = load(*pair(case), dtype=dtype)
    wanted = {name: alone(eagle, name, page_size=3) for name in PROMPTS}
    driver = Driver(eagle, page_size_tokens=4)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in PROMPTS}
    order = list(PROMPTS)
    for name in order:
        driver.add(name, PROMPTS[name])
    for step in range(5):
        order = order[1:] + order[:1]
        driver.step({name: move(driver, name, step) for name in order})
        for name in order:
            found[name] += note(driver, [name])
    for name, rows in wanted.items():
        assert len(rows) == len(found[name]) == 5
        assert all(torch.equal(a, b) for a, b in zip(rows, found[name], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_any_chunking_drafts_what_one_chunk_does(pair: Pair, case: str, dtype: str) -> None:
    eagle = load(*pair(case), dtype=dtype)
    found = []
    for chunks in ((7,), (1,) * 7, (3, 4), (6, 1), (2, 2, 3)):
        driver = Driver(eagle)
        driver.add("a", PROMPTS["a"])
        for rows in chunks:
            proposals = driver.step({"a": Move(rows=rows, next_token=50, width=4)})
            assert bool(proposals["a"].tokens) == (driver.running["a"].num_committed == 7)
        found += note(driver, ["a"])
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("case", CASES)
def test_the_cache_is_that_of_the_committed_tokens_alone(pair: Pair, case: str) -> None:
    """Rejected and scratch rows leave nothing behind, whatever was drafted before."""
    eagle = load(*pair(case))
    driver = Driver(eagle)
    driver.add("a", PROMPTS["a"])
    for step in range(6):
        driver.step({"a": move(driver, "a", step, width=1 + step % 4)})
    one = driver.running["a"]
    fresh = Driver(eagle)
    fresh.add("a", one.tokens[:-1])
    fresh.step({"a": Move(rows=len(one.tokens) - 1, next_token=one.tokens[-1])})
    ours, wanted = (_rows(d, len(one.tokens) - 1) for d in (driver, fresh))
    assert torch.equal(ours, wanted)
    assert ours.isfinite().all()


def _rows(driver: Driver, count: int) -> torch.Tensor:
    """The committed rows of the draft's paged cache, every layer."""
    pages = list(driver.states.pages_of("a"))
    blocks = driver.states.paged_cache("draft").blocks
    return torch.stack([block[pages].flatten(0, 1)[:count] for block in blocks])


@pytest.mark.parametrize("case", CASES)
def test_shared_pages_hold_what_the_request_itself_would_write(pair: Pair, case: str) -> None:
    """The last row of a page depends on the token after it: it is shared only if that agrees."""
    eagle = load(*pair(case))
    start = [11, 40, 3, 77, 25, 60, 8, 19]
    hits = []
    for follow in ([33, 2], [6, 7], [33, 9]):
        rows = []
        for caching in (True, False):
            driver = Driver(eagle, prefix_caching=caching)
            driver.add("first", [*start, 33, 1])
            driver.step({"first": Move(rows=10, next_token=4)})
            driver.states.release("first")
            one = driver.add("a", [*start, *follow])
            hits += [one.num_committed] * caching
            driver.step({"a": Move(rows=10 - one.num_committed, next_token=5)})
            rows.append(_rows(driver, 10))
        assert torch.equal(*rows)
    assert hits == [8, 4, 8]


@pytest.mark.parametrize("case", CASES)
def test_proposing_again_after_an_exception_proposes_the_same(
    pair: Pair, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eagle = load(*pair(case))
    for fails_at in (0, 1, 2):
        plain, broken = (_one_step(eagle, monkeypatch, at) for at in (None, fails_at))
        assert plain.tokens == broken.tokens


def _one_step(eagle: EagleModel, patch: pytest.MonkeyPatch, fails_at: int | None) -> Proposal:
    driver = Driver(eagle)
    driver.add("a", PROMPTS["a"])
    propose, forward, calls = eagle.propose, eagle.forward, [0]

    def failing(rows):  # type: ignore[no-untyped-def]
        outputs = forward(rows)
        calls[0] += 1
        if calls[0] - 1 == fails_at:
            raise ZeroDivisionError
        return outputs

    def again(batch):  # type: ignore[no-untyped-def]
        with patch.context() as inner:
            inner.setattr(eagle, "forward", failing)
            if fails_at is not None:
                with pytest.raises(ZeroDivisionError):
                    propose(batch)
        return propose(batch)

    with patch.context() as outer:
        outer.setattr(eagle, "propose", again)
        return driver.step({"a": Move(rows=7, next_token=50, width=3)})["a"]


@pytest.mark.parametrize("case", CASES)
def test_drafting_pauses_at_the_drafts_last_position(pair: Pair, case: str) -> None:
    """Requests before, at and past the limit in one batch; nothing past it is ever run."""
    eagle = load(*pair(case))
    limit = eagle.max_positions = 11
    driver = Driver(eagle)
    driver.add("a", PROMPTS["a"])
    driver.add("c", PROMPTS["c"])
    seen: dict[str, list[int]] = {"a": [], "c": []}
    for step in range(12):
        before = {name: one.num_committed for name, one in driver.running.items()}
        proposals = driver.step({n: move(driver, n, step, width=4) for n in ("a", "c")})
        for name, proposal in proposals.items():
            after = driver.running[name].num_committed
            assert after > before[name]
            assert len(proposal.tokens) == max(0, min(4, limit - (after - 1)))
            seen[name].append(len(proposal.tokens))
    assert all(4 in counts and 0 in counts for counts in seen.values())
    for name, one in driver.running.items():
        pages = list(driver.states.pages_of(name))
        rows = driver.states.paged_cache("draft").blocks[0][pages].flatten(0, 1)
        assert rows[:limit].isfinite().all()
        assert rows[limit:].isnan().all()
        assert one.num_committed > limit


def test_the_limit_is_the_drafts_own(pair: Pair) -> None:
    eagle = load(*pair("eagle3"))
    assert eagle.max_positions == eagle.config.max_position == 128
