"""Several answers to one prompt, and prompts that begin alike: computed once, with equal bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilotfish import LLM, CacheConfig, SamplingParams
from pilotfish.config.sampling import MOST_SAMPLES, seed_of_sample
from pilotfish.errors import RequestError
from support.toy_model import naive_answer, toy_registry, write_toy_checkpoint

PROMPT = [97 + i % 5 for i in range(18)]
PARAMS = SamplingParams(seed=11, n=4, max_tokens=5, ignore_eos=True)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    cache = CacheConfig(page_size_tokens=4)
    with LLM(
        str(write_toy_checkpoint(tmp_path)), registry=toy_registry(), cache=cache, max_batch_size=8
    ) as made:
        yield made
        assert not made.engine.has_work


def rows_of(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every pass from here on."""
    rows: list[int] = []
    real = llm.engine.runner.compute

    def compute(batch: Any) -> Any:
        rows.append(sum(request.num_scheduled for request in batch))
        return real(batch)

    monkeypatch.setattr(llm.engine.runner, "compute", compute)
    return rows


def test_each_answer_is_one_that_can_be_asked_for_alone(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, PARAMS)
    assert [one.sample for one in output.outputs] == [0, 1, 2, 3]
    assert [one.seed for one in output.outputs] == [seed_of_sample(11, i) for i in range(4)]
    assert output.outputs[0].token_ids == output.token_ids
    assert len({tuple(one.token_ids) for one in output.outputs}) > 1
    for one in output.outputs:
        alone = attrs.evolve(PARAMS, n=1, seed=one.seed)
        assert list(one.token_ids) == naive_answer(PROMPT, alone)[0]
        assert llm.generate(PROMPT, alone)[0].token_ids == one.token_ids


def test_seeds_of_samples_are_for_ever() -> None:
    """Whoever noted one must get the text again."""
    assert [seed_of_sample(4, i) for i in range(3)] == [
        4,
        3354840362017390224,
        2148397563845503714,
    ]


def test_a_drawn_seed_is_reported(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, attrs.evolve(PARAMS, seed=None, n=2))
    assert output.seed is not None
    assert output.others[0].seed == seed_of_sample(output.seed, 1)
    assert llm.generate(PROMPT, attrs.evolve(PARAMS, seed=output.seed, n=2))[0].others[
        0
    ].token_ids == (output.others[0].token_ids)


def test_answers_as_plain_data(llm: LLM) -> None:
    several = llm.generate([PROMPT, PROMPT[:3]], [PARAMS, attrs.evolve(PARAMS, n=1)])
    first, second = (output.to_json() for output in several)
    assert first["sample"] == 0
    assert [other["sample"] for other in first["others"]] == [1, 2, 3]
    assert first["others"][1]["token_ids"] == list(several[0].others[1].token_ids)
    assert "others" not in second
    assert "sample" not in second


def test_a_refused_prompt_has_one_output(llm: LLM) -> None:
    good, bad = llm.generate([PROMPT, []], PARAMS)
    assert len(good.outputs) == 4
    assert bad.finish_reason == "error"
    assert bad.outputs == (bad,)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None, MOST_SAMPLES + 1])
def test_a_number_of_answers(n: Any) -> None:
    with pytest.raises(RequestError, match=r"n is .*; wanted a whole number"):
        SamplingParams(n=n)


def test_a_stream_has_one_answer(llm: LLM) -> None:
    with pytest.raises(RequestError, match="n is 4, and a stream has one answer"):
        llm.stream(PROMPT, PARAMS)


def test_the_prompt_of_several_answers_is_computed_once(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(llm, monkeypatch)
    llm.generate(PROMPT, attrs.evolve(PARAMS, max_tokens=1))
    assert rows == [18, 3 * 2], "four pages of four rows are shared"


def test_prompts_that_begin_alike_are_computed_once(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(llm, monkeypatch)
    prompts = [[*PROMPT, 100 + i, 101] for i in range(20)]
    outputs = llm.generate(prompts, SamplingParams(seed=1, max_tokens=1, ignore_eos=True))
    assert sum(rows) == 20 + 19 * 4
    for prompt, output in zip(prompts, outputs, strict=True):
        alone = SamplingParams(seed=1, max_tokens=1, ignore_eos=True)
        assert list(output.token_ids) == naive_answer(prompt, alone)[0]
