"""Whatever runs beside a request, however it is cut, and however few pages: the same answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pilotfish.config import SamplingParams
from pilotfish.engine.outputs import RequestOutput
from support.engine_strategies import MAX_SEQ_LEN, Job, jobs, params, prompts, sizes, token_lists
from support.toy_model import ToyEngine, naive_answer

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=150)
@given(work=jobs(), size=sizes())
def test_every_mixture_gives_each_request_its_naive_answer(
    work: list[Job], size: dict[str, Any]
) -> None:
    outputs = ToyEngine(**size).run(work)
    for (prompt, options), output in zip(work, outputs, strict=True):
        tokens, text, reason = naive_answer(prompt, options, max_seq_len=MAX_SEQ_LEN)
        assert (list(output.token_ids), output.text, output.finish_reason) == (tokens, text, reason)
        assert list(output.prompt_token_ids) == prompt
        assert output.seed == options.seed


@settings(max_examples=60)
@given(work=jobs(4), size=sizes())
def test_log_probabilities_do_not_depend_on_the_mixture(
    work: list[Job], size: dict[str, Any]
) -> None:
    def records(outputs: list[RequestOutput]) -> list[Any]:
        return [(output.logprobs, output.prompt_logprobs) for output in outputs]

    alone = [ToyEngine(max_seq_len=MAX_SEQ_LEN, max_batch_tokens=64).run([job])[0] for job in work]
    engine = ToyEngine(**size)
    assert records(engine.run(work)) == records(alone)
    assert records(engine.run(work)) == records(alone), "with every prefix cached"
    for (prompt, options), output in zip(work, alone, strict=True):
        assert (output.logprobs is None) == (options.logprobs is None)
        if output.logprobs is not None:
            assert [r.token_id for r in output.logprobs] == list(output.token_ids)
        if options.prompt_logprobs is None:
            assert output.prompt_logprobs is None
        else:
            assert output.prompt_logprobs is not None
            assert output.prompt_logprobs[0] is None
            found = [r.token_id for r in output.prompt_logprobs[1:] if r is not None]
            assert found == prompt[1:]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_all_prompt_lengths_around_chunks_and_pages(chunk: int) -> None:
    """A last chunk of any length, and lengths that end a page: pitfalls 9 and 12."""
    options = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    engine = ToyEngine(max_batch_tokens=chunk, page_size=4, prefix_caching=False)
    for length in range(1, 3 * chunk + 5):
        prompt = list(range(97, 97 + length))
        [output] = engine.run([(prompt, options)])
        assert list(output.token_ids) == naive_answer(prompt, options)[0], length


def test_chunks_are_as_long_as_the_budget_allows() -> None:
    engine = ToyEngine(max_batch_tokens=5)
    engine.run([(list(range(12)), SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))])
    assert engine.model.passes == [(5,), (5,), (2,), (1,)]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    engine = ToyEngine(max_batch_tokens=5)
    options = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    engine.add([1, 2], options)
    engine.engine.step()
    engine.add(list(range(20)), options)
    engine.engine.step()
    engine.engine.step()
    assert engine.model.passes == [(2,), (1, 4), (1, 4)]


def test_too_few_pages_preempt_and_change_no_text() -> None:
    options = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    work: list[Job] = [([97 + i] * (6 + i), options) for i in range(4)]
    engine = ToyEngine(num_pages=8, page_size=4, max_seq_len=32)
    outputs = engine.run(work)
    assert engine.scheduler.num_preemptions >= 2
    assert token_lists(outputs) == [naive_answer(p, o, max_seq_len=32)[0] for p, o in work]


def test_a_cached_prefix_is_used_and_changes_no_text() -> None:
    options = SamplingParams(seed=1, max_tokens=4, ignore_eos=True)
    engine = ToyEngine(max_batch_tokens=64)
    prompt = list(range(97, 97 + 13))
    cold = engine.run([(prompt, options)])
    assert engine.model.passes[0] == (13,)
    engine.model.passes.clear()
    warm = engine.run([(prompt, options)])
    assert engine.model.passes[0] == (1,), "12 of 13 rows were cached"
    assert token_lists(warm) == token_lists(cold)


def test_prompt_log_probabilities_are_whole_although_the_prompt_is_cached() -> None:
    plain = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    asking = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=1)
    prompt = list(range(97, 97 + 13))
    engine = ToyEngine(max_batch_tokens=5)
    [cold] = ToyEngine(max_batch_tokens=64).run([(prompt, asking)])
    engine.run([(prompt, plain)])
    [warm] = engine.run([(prompt, asking)])
    assert warm.prompt_logprobs == cold.prompt_logprobs
    assert warm.prompt_logprobs is not None
    assert len(warm.prompt_logprobs) == 13


@settings(max_examples=40)
@given(prompt=prompts(), options=params(), work=jobs(3))
def test_a_seed_belongs_to_its_request_alone(
    prompt: list[int], options: SamplingParams, work: list[Job]
) -> None:
    """Pitfall 22: neighbours neither advance nor share a request's noise."""
    engine = ToyEngine(max_seq_len=MAX_SEQ_LEN)
    [alone] = engine.run([(prompt, options)])
    beside = engine.run([*work, (prompt, options), *work])[len(work)]
    assert beside.token_ids == alone.token_ids


def test_a_seed_that_is_not_given_is_drawn_and_reported() -> None:
    engine = ToyEngine()
    free = SamplingParams(max_tokens=12, temperature=3.0, ignore_eos=True)
    first, second = engine.run([([97], free), ([97], free)])
    assert first.seed != second.seed
    assert first.token_ids != second.token_ids
    again = SamplingParams(max_tokens=12, temperature=3.0, ignore_eos=True, seed=first.seed)
    assert engine.run([([97], again)])[0].token_ids == first.token_ids
