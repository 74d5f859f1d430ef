"""A row's bits depend on its own request alone: not on batch mates, chunks, pages or passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llama3.driver import Driver, chunked, load, whole
from llama3.families import CASES, prompt
from pilotfish.protocols import ReturnLogits
from pilotfish_llama3.model import Llama3Model

Checkpoint = Callable[[str], Path]

DTYPES = ("float32", "bfloat16")
LENGTHS = (1, 19, 4, 27)
CHUNKS = ((1, 26), (9, 1, 17), (5,) * 5 + (2,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_ragged_batch_equals_singles_and_chunks_equal_the_whole(
    checkpoint: Checkpoint, case: str, dtype: str
) -> None:
    model = load(checkpoint(case), dtype)
    driver = Driver(model)
    for index, length in enumerate(LENGTHS):
        driver.add(str(index), prompt(length, seed=index))
    together = driver.run({str(i): n for i, n in enumerate(LENGTHS)})
    bounds = together.logit_offsets.tolist()
    assert bounds == [0, 1, 20, 24, 51]
    for index, length in enumerate(LENGTHS):
        alone = whole(model, prompt(length, seed=index))
        assert torch.equal(together.logits[bounds[index] : bounds[index + 1]], alone)
    for sizes in CHUNKS:
        assert torch.equal(chunked(model, prompt(27, seed=3), sizes), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_page_size_does_not_matter(checkpoint: Checkpoint, dtype: str) -> None:
    model = load(checkpoint("mistral"), dtype)
    wanted = whole(model, prompt(27))
    for size in (1, 2, 8, 32, 128):
        assert torch.equal(whole(model, prompt(27), page_size_tokens=size), wanted)


@pytest.fixture(scope="module")
def models(checkpoint: Checkpoint) -> dict[str, Llama3Model]:
    return {dtype: load(checkpoint("llama-dynamic"), dtype) for dtype in DTYPES}


@settings(max_examples=20, phases=[Phase.generate])
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_schedule_equals_singles(
    models: dict[str, Llama3Model], data: st.DataObject, dtype: str
) -> None:
    """Prefill, chunks and decode of several requests in one pass, in any mixture."""
    model = models[dtype]
    lengths = data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=4))
    driver = Driver(model)
    rows: dict[str, list[torch.Tensor]] = {}
    for index, length in enumerate(lengths):
        driver.add(str(index), prompt(length, seed=index))
        rows[str(index)] = []
    while left := {
        name: len(context.tokens) - context.num_computed
        for name, context in driver.contexts.items()
        if context.num_computed < len(context.tokens)
    }:
        names = data.draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        counts = {name: data.draw(st.integers(1, left[name])) for name in names}
        outputs = driver.run(counts)
        bounds = outputs.logit_offsets.tolist()
        for place, name in enumerate(names):
            rows[name].append(outputs.logits[bounds[place] : bounds[place + 1]])
    for index, length in enumerate(lengths):
        alone = whole(model, prompt(length, seed=index))
        assert torch.equal(torch.cat(rows[str(index)]), alone)


@pytest.mark.parametrize("case", ["llama-dynamic", "phi3-longrope"])
def test_an_answer_prefilled_again_keeps_its_bits(checkpoint: Checkpoint, case: str) -> None:
    """Preemption: a prompt of 10 that grew to 27 past its original length of 16."""
    model = load(checkpoint(case))
    tokens = prompt(27)
    passes = []
    for sizes in ((10, *(1,) * 17), (27,), (14, 13)):
        driver = Driver(model)
        driver.add("a", tokens).num_prompt_tokens = 10
        passes.append(torch.cat([driver.run({"a": size}).logits for size in sizes]))
    assert torch.equal(passes[0], passes[1])
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], whole(model, tokens))


@pytest.mark.parametrize("dtype", DTYPES)
def test_next_inputs_equal_packed_inputs(checkpoint: Checkpoint, dtype: str) -> None:
    """`prepare_next_token_inputs` step after step, over page borders, against packing afresh."""
    model = load(checkpoint("llama-dynamic"), dtype, return_logits=ReturnLogits.LAST_TOKEN)
    packed, followed = Driver(model), Driver(model)
    names, steps = ["a", "b"], 6
    for driver in (packed, followed):
        for name, length in zip(names, (7, 14), strict=True):
            driver.add(name, prompt(length, seed=length))
        driver.run({"a": 7, "b": 14})
    for name in names:  # the pages of all steps, reserved before the first
        followed.states.reserve(name, list(range(steps + 1)))
    contexts = [followed.contexts[name] for name in names]
    for context in contexts:
        context.num_scheduled = 1
        context.tokens += range(steps)
    kv = followed.states.kv_inputs(names, [1, 1])
    inputs = model.prepare_initial_token_inputs([contexts], kv)
    for step in range(steps):
        for name in names:
            packed.contexts[name].tokens.append(step)
        wanted = packed.run({"a": 1, "b": 1}).logits
        assert torch.equal(model.execute(inputs).logits, wanted)
        inputs = model.prepare_next_token_inputs(torch.tensor([step + 1] * 2), inputs)
    made = inputs.kv_cache_inputs
    assert made is not None
    assert made.lengths == (13, 20)
    assert made.cache_lengths.tolist() == [13, 20]
    assert made.row_counts == (1, 1)
