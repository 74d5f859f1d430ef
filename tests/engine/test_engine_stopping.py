"""Where an answer ends, what of it is text, and what a stream of it shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pilotfish.config import SamplingParams
from pilotfish.engine.stopping import StopRules
from pilotfish.errors import CapacityError, RequestError, UserError
from support.engine_strategies import MAX_SEQ_LEN, Job, jobs, params, prompts, sizes
from support.toy_model import EOS, VOCAB, ToyEngine, naive_answer, output_of

pytestmark = pytest.mark.usefixtures("one_thread")

ONLY_B = {98: 100.0}
"""A bias under which every token is "b"."""


def answer(prompt: Any, engine: ToyEngine | None = None, **fields: Any) -> Any:
    return (engine or ToyEngine()).run([(prompt, SamplingParams(temperature=0, **fields))])[0]


def test_an_end_token_is_a_token_of_the_answer_but_not_of_its_text() -> None:
    output = answer("a", logit_bias={EOS: 100.0})
    assert (output.token_ids, output.text, output.finish_reason) == ([EOS], "", "stop")


def test_a_stop_id_is_a_token_of_the_answer_but_not_of_its_text() -> None:
    output = answer("a", logit_bias=ONLY_B, stop_token_ids=[98])
    assert (output.token_ids, output.text, output.finish_reason) == ([98], "", "stop")


def test_ignored_end_tokens_do_not_end_the_answer_and_stop_ids_still_do() -> None:
    bias = {EOS: 100.0}
    assert answer("a", logit_bias=bias, ignore_eos=True, max_tokens=5).token_ids == [EOS] * 5
    output = answer("a", logit_bias=bias, ignore_eos=True, stop_token_ids=[EOS])
    assert (output.token_ids, output.finish_reason) == ([EOS], "stop")


def test_a_stop_string_is_cut_from_the_text_and_its_tokens_stay() -> None:
    output = answer("a", logit_bias=ONLY_B, stop=["bbb"])
    assert (output.token_ids, output.text, output.finish_reason) == ([98] * 3, "", "stop")


@pytest.mark.parametrize("min_tokens", [1, 3, 4])
def test_min_tokens_holds_back_end_tokens_and_stop_strings(min_tokens: int) -> None:
    ended = answer("a", logit_bias={EOS: 100.0, 98: 50.0}, min_tokens=min_tokens)
    assert ended.token_ids == [98] * min_tokens + [EOS]
    cut = answer("a", logit_bias=ONLY_B, stop=["bb"], min_tokens=min_tokens)
    assert cut.token_ids == [98] * max(2, min_tokens)
    assert cut.text == "b" * (max(2, min_tokens) - 2)


def test_max_tokens_ends_with_length_and_an_end_token_in_the_last_place_with_stop() -> None:
    assert answer("a", logit_bias=ONLY_B, max_tokens=4).finish_reason == "length"
    last = answer("a", logit_bias={EOS: 100.0}, max_tokens=1)
    assert (last.token_ids, last.finish_reason) == ([EOS], "stop")


@pytest.mark.parametrize("length", [8, 14, 15])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_the_context_limit_cuts_the_answer_exactly(length: int, page_size: int) -> None:
    """Pitfalls 9 and 17: contexts that end with a page, prompts one short of the context."""
    engine = ToyEngine(max_seq_len=16, page_size=page_size, num_pages=16 // page_size)
    output = answer([1] * length, engine, logit_bias=ONLY_B, max_tokens=100)
    assert output.token_ids == [98] * (16 - length)
    assert output.finish_reason == "length"


@settings(max_examples=80)
@given(prompt=prompts(), options=params(), size=sizes())
def test_what_a_stream_shows_joins_to_the_output(
    prompt: list[int], options: SamplingParams, size: dict[str, Any]
) -> None:
    engine = ToyEngine(**size)
    request = engine.add(prompt, options, streams=True)
    while engine.engine.has_work:
        engine.engine.step()
    output, deltas = output_of(request), list(request.outbox)
    tokens, text, reason = naive_answer(prompt, options, max_seq_len=MAX_SEQ_LEN)
    assert "".join(delta.text for delta in deltas) == output.text == text
    assert [token for delta in deltas for token in delta.token_ids] == tokens
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == reason
    if options.logprobs is None:
        assert all(delta.logprobs is None for delta in deltas)
    else:
        joined = [record for delta in deltas for record in delta.logprobs or ()]
        assert joined == output.logprobs


def test_text_that_may_become_a_stop_string_is_not_shown_yet() -> None:
    engine = ToyEngine()
    options = SamplingParams(
        temperature=0, logit_bias=ONLY_B, stop=["bbbz"], max_tokens=4, ignore_eos=True
    )
    request = engine.add("a", options, streams=True)
    while engine.engine.has_work:
        engine.engine.step()
    assert [delta.text for delta in request.outbox] == ["", "", "", "b", "bbb"]


@settings(max_examples=40)
@given(work=jobs())
def test_several_tokens_of_one_step_are_cut_where_one_by_one_would_have_ended(
    work: list[Job],
) -> None:
    """Pitfall 17: a block that runs over the end, handed over at once."""
    engine = ToyEngine(max_seq_len=MAX_SEQ_LEN)
    for prompt, options in work:
        tokens, text, reason = naive_answer(prompt, options, max_seq_len=MAX_SEQ_LEN)
        request = engine.admission.admit(prompt, options)
        ended = request.accept((*tokens, 97, 98, 99), (None,) * (len(tokens) + 3))
        assert ended is not None
        request.finish(ended)
        output = output_of(request)
        assert (list(output.token_ids), output.text, output.finish_reason) == (tokens, text, reason)


def test_rules_take_the_smaller_limit() -> None:
    rules = StopRules.of(
        SamplingParams(max_tokens=9), num_prompt_tokens=5, eos_token_ids=(3, 4), max_seq_len=12
    )
    assert rules.max_total_tokens == 12
    assert rules.end_ids == {3, 4}
    assert rules.banned_ids == (3, 4)


REFUSED: list[tuple[Any, dict[str, Any], type[UserError], str]] = [
    ("", {}, RequestError, "the prompt is empty"),
    ([], {}, RequestError, "the prompt is empty"),
    ([1, VOCAB], {}, RequestError, "token 1 of the prompt is 257.*from 0 to 256"),
    ([-1], {}, RequestError, "token 0 of the prompt is -1"),
    ([1, True], {}, RequestError, "token 1 of the prompt is True"),
    ([1, 2.0], {}, RequestError, "token 1 of the prompt is 2.0"),
    (None, {}, RequestError, "a prompt is NoneType; wanted text or a list"),
    ([1] * 64, {}, RequestError, "has 64 tokens; wanted at most 63"),
    ([1] * 200, {}, RequestError, "has 200 tokens; wanted at most 63"),
    ([1], {"logit_bias": {VOCAB: 1.0}}, RequestError, "logit_bias has token id 257"),
    ([1], {"stop_token_ids": [999]}, RequestError, "stop_token_ids has token id 999"),
    ([1] * 20, {"max_tokens": 14}, CapacityError, "takes 33 rows and the cache has 32"),
]


@pytest.mark.parametrize(("prompt", "fields", "error", "message"), REFUSED)
def test_a_bad_request_is_refused_before_any_work(
    prompt: Any, fields: dict[str, Any], error: type[UserError], message: str
) -> None:
    """Pitfall 44: it is told why, at once."""
    engine = ToyEngine(num_pages=8, page_size=4)
    with pytest.raises(error, match=message):
        engine.add(prompt, SamplingParams(**fields))
    engine.check_idle()
    assert engine.model.passes == []


def test_the_largest_request_that_fits_runs_alone_in_every_page() -> None:
    engine = ToyEngine(num_pages=8, page_size=4)
    output = answer([1] * 20, engine, max_tokens=13, ignore_eos=True)
    assert len(output.token_ids) == 13


def test_text_needs_a_tokenizer() -> None:
    engine = ToyEngine(with_text=False)
    with pytest.raises(RequestError, match="no tokenizer; pass token ids"):
        engine.add("a", SamplingParams())
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        engine.add([1], SamplingParams(stop=["a"]))
    assert answer([1], engine, max_tokens=2, ignore_eos=True).text == ""


def test_a_block_of_tokens_is_cut_where_the_model_wants_all_rows_anew() -> None:
    engine = ToyEngine()
    request = engine.admission.admit([1, 2], SamplingParams(temperature=0, ignore_eos=True))
    request.restart_above = 4
    assert request.accept([5, 6, 7, 8], [None] * 4, drafted=[5, 6, 7], num_accepted=3) is None
    assert request.tokens == [1, 2, 5, 6, 7]
    assert request.is_restart_due
    assert request.accept([8], [None]) is None
    assert request.tokens == [1, 2, 5, 6, 7]


def test_a_bias_that_is_changed_between_calls_counts() -> None:
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logit_bias={})
    engine = ToyEngine()
    assert engine.run([([1, 2], params)])[0].token_ids != [5, 5, 5]
    assert isinstance(params.logit_bias, dict)
    params.logit_bias[5] = 1e9
    assert engine.run([([1, 2], params)])[0].token_ids == [5, 5, 5]
