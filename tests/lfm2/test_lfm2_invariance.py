"""A row's bits depend on its own request alone: not on batch mates, chunks, pages or rejections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lfm2.checkpoints import CASES, prompt
from lfm2.driver import DTYPES, Driver, chunked, load, whole
from lfm2.histories import Histories, Plain, serve_in_turn
from pilotfish.protocols import ReturnLogits

Checkpoint = Callable[[str], Path]

LENGTHS = (1, 19, 4, 27, 2)
PAGE = 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_ragged_batch_equals_singles_and_chunks_equal_the_whole(
    checkpoint: Checkpoint, case: str, dtype: str
) -> None:
    """27 rows are more than a slot takes in place; 19 too; the others are not."""
    model = load(checkpoint(case), dtype)
    driver = Driver(model, page_size_tokens=PAGE)
    for index, length in enumerate(LENGTHS):
        driver.add(str(index), prompt(length, seed=index))
    together = driver.run({str(i): n for i, n in enumerate(LENGTHS)})
    for index, length in enumerate(LENGTHS):
        alone = whole(model, prompt(length, seed=index))
        assert torch.equal(together[str(index)], alone)
    tokens = prompt(27, seed=3)
    for size in (1, 2, PAGE - 1, PAGE, PAGE + 1, 16, 17):
        assert torch.equal(chunked(model, tokens, size, page_size_tokens=PAGE), together["3"])


@pytest.fixture(scope="module", params=["plain", "width-5"])
def plain(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> dict[str, Plain]:
    """Of each dtype."""
    return {dtype: Plain(load(checkpoint(request.param), dtype)) for dtype in DTYPES}


@settings(max_examples=25, phases=[Phase.generate])
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_history_of_rejections_equals_feeding_only_what_was_committed(
    plain: dict[str, Plain], data: st.DataObject, dtype: str
) -> None:
    """Requests come and go; every pass offers right and wrong rows and keeps some right ones."""
    Histories(plain[dtype], data, prefix_caching=False).play(num_passes=8)


@settings(max_examples=25, phases=[Phase.generate])
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_history_over_shared_prefixes_does(
    plain: dict[str, Plain], data: st.DataObject, dtype: str
) -> None:
    """The same with prefix hits, evictions, and requests that are preempted and come back."""
    Histories(plain[dtype], data, prefix_caching=True).play(num_passes=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 1, 30])
def test_a_prefix_hit_gives_the_bits_of_a_cold_start(
    checkpoint: Checkpoint, dtype: str, length: int
) -> None:
    model = load(checkpoint("plain"), dtype)
    tokens, other = prompt(length), prompt(length, seed=2)
    driver = Driver(model, page_size_tokens=PAGE, prefix_caching=True)
    driver.add("cold", tokens)
    cold = driver.run({"cold": length})["cold"]
    restored = driver.add("warm", tokens)
    assert restored == (length - 1) // PAGE * PAGE
    assert torch.equal(driver.run({"warm": length - restored})["warm"], cold[restored:])
    for a, b in zip(driver.columns("warm"), driver.columns("cold"), strict=True):
        assert torch.equal(a, b)
    driver.drop("cold")
    driver.drop("warm")
    # Half the prefix is shared, from pages without an owner.
    half = length // 2
    mixed = tokens[:half] + other[half:]
    restored = driver.add("mixed", mixed)
    assert restored == min(half, length - 1) // PAGE * PAGE
    rest = driver.run({"mixed": length - restored})["mixed"]
    assert torch.equal(rest, whole(model, mixed)[restored:])


def test_an_evicted_page_takes_its_columns_along(plain: dict[str, Plain]) -> None:
    for one in plain.values():
        serve_in_turn(one.model)


def test_a_hit_ends_where_columns_are_kept(checkpoint: Checkpoint) -> None:
    """The pages alone are not enough: without the columns of page 2 the hit is page 1."""
    model = load(checkpoint("plain"))
    driver = Driver(model, page_size_tokens=PAGE, prefix_caching=True)
    driver.add("a", prompt(13))
    driver.run({"a": 13})
    pages = driver.states.pages_of("a")
    driver.caches[0].forget(pages[2])
    assert driver.add("b", prompt(13)) == 2 * PAGE
    driver.caches[0].forget(pages[0])
    driver.caches[0].forget(pages[1])
    assert driver.add("c", prompt(13)) == 0
    assert torch.equal(driver.run({"c": 13})["c"], whole(model, prompt(13)))
    # Its pages hold what is published already, and its columns are kept for them again.
    assert driver.add("d", prompt(13)) == 3 * PAGE


@pytest.mark.parametrize("dtype", DTYPES)
def test_next_inputs_equal_packed_inputs(checkpoint: Checkpoint, dtype: str) -> None:
    """`prepare_next_token_inputs` step after step, in place and in a run, and one commit of all."""
    model = load(checkpoint("plain"), dtype, return_logits=ReturnLogits.LAST_TOKEN)
    packed, followed = Driver(model), Driver(model)
    names, steps = ["a", "b"], 6
    for driver in (packed, followed):
        for name, length in zip(names, (7, 14), strict=True):
            driver.add(name, prompt(length, seed=length))
        driver.run({"a": 7, "b": 14})
    followed.states.reserve("a", list(range(steps + 1)))
    followed.states.reserve("b", list(range(20)))  # more than a slot takes in place
    contexts = [followed.contexts[name] for name in names]
    for context in contexts:
        context.num_scheduled = 1
        context.tokens += range(steps)
    kv = followed.states.kv_inputs(names, [1, 1])
    inputs = model.prepare_initial_token_inputs([contexts], kv)
    for step in range(steps):
        for name in names:
            packed.contexts[name].tokens.append(step)
        wanted = torch.cat(list(packed.run({"a": 1, "b": 1}).values()))
        assert torch.equal(model.execute(inputs).logits, wanted)
        inputs = model.prepare_next_token_inputs(torch.tensor([step + 1] * 2), inputs)
    for name in names:
        followed.states.commit(name, steps)
        for a, b in zip(packed.columns(name), followed.columns(name), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("count", [5, 20])
def test_a_pass_may_continue_after_rows_that_are_not_committed(
    checkpoint: Checkpoint, count: int
) -> None:
    """`skip`: two passes over one reservation, then a commit of some of both."""
    model, tokens = load(checkpoint("plain")), prompt(count)
    driver = Driver(model)
    driver.add("a", tokens)
    context = driver.contexts["a"]
    driver.states.reserve("a", tokens)
    parts = []
    for start, stop in ((0, 3), (3, count)):
        context.num_computed, context.num_scheduled = start, stop - start
        kv = driver.states.kv_inputs(["a"], [stop - start], skip=[start])
        parts.append(model.execute(model.prepare_initial_token_inputs([[context]], kv)).logits)
    assert torch.equal(torch.cat(parts), whole(model, tokens))
    driver.states.commit("a", 4)
    context.num_computed = 4
    assert torch.equal(driver.run({"a": count - 4})["a"], whole(model, tokens)[4:])
