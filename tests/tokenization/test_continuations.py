"""Answers that continue a text keep its first space; stop strings may name special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from pilotfish import LLM, SamplingParams
from pilotfish.cli.deltas import draft_colors
from pilotfish.errors import RequestError
from pilotfish.tokenization.detokenizer import Detokenizer
from pilotfish.tokenization.text_stream import TextStream, text_stream
from pilotfish.tokenization.tokenizer import Tokenizer, need_tokenizer
from support.chains import chain_checkpoint
from tokenization.test_detokenizer import byte_level_with_added, spm, word_piece
from tokenization.test_tokenizer_published import metaspace, prepend, read, save


def streamed(stream: TextStream, ids: Sequence[int]) -> str:
    return "".join([stream.push(token) for token in ids]) + stream.finish()


def metaspace_decoder(folder: Path) -> Tokenizer:
    """Its decoder is not followed token by token."""
    made = metaspace("always")
    made.decoder = decoders.Metaspace()
    save(folder, made)
    return read(folder)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        "byte-level": byte_level_with_added(),
        "spm": spm(True),
        "spm-no-prefix": spm(False),
        "metaspace": metaspace_decoder(tmp_path_factory.mktemp("metaspace")),
        "word-piece": word_piece(),
    }


@pytest.mark.parametrize("kind", ["byte-level", "spm", "spm-no-prefix", "metaspace", "word-piece"])
@given(data=st.data(), num_special=st.integers(0, 2))
def test_text_and_continuation_are_what_all_ids_decode_to(
    vocabularies: dict[str, Tokenizer], kind: str, data: st.DataObject, num_special: int
) -> None:
    tokenizer = vocabularies[kind]
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    letters = [i for i, text in enumerate(texts) if text.isprintable() and "\ufffd" not in text]
    ids = st.lists(st.sampled_from(letters), max_size=12)
    bos = [tokenizer.encode("<s>", add_special_tokens=False)[0]] if tokenizer.special_ids else []
    context = bos * num_special + data.draw(ids)
    answer = data.draw(ids)
    before, whole = tokenizer.decode(context), tokenizer.decode([*context, *answer])
    stream = text_stream(tokenizer, context=context)
    if whole.startswith(before):
        assert before + streamed(stream, answer) == whole


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Says "_a", "b", "_a", the end-of-turn token, "_a", ... whatever came before."""
    folder = tmp_path_factory.mktemp("parrot")
    made = prepend()
    strip = decoders.Strip(" ", 1, 0)
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    made.add_special_tokens(["<|end|>"])
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    save(folder, made, chat_template=template)
    ids = made.get_vocab()
    space_a, b, end = ids["\u2581a"], ids["b"], ids["<|end|>"]
    chain_checkpoint(folder, len(ids), {space_a: b, b: end, end: space_a}, default=space_a)
    return LLM(str(folder))


def say(llm: LLM, prompt: Any, **fields: Any) -> Any:
    return llm.generate(prompt, SamplingParams(temperature=0, max_tokens=5, **fields))[0]


def test_a_text_is_continued_with_its_space(parrot: LLM) -> None:
    output = say(parrot, "12")
    assert output.text == " ab ab"
    tokenizer = need_tokenizer(parrot.tokenizer)
    assert tokenizer.decode([*output.prompt_token_ids, *output.token_ids]) == "12" + output.text
    params = SamplingParams(temperature=0, max_tokens=5)
    assert "".join(delta.text for delta in parrot.stream("12", params)) == output.text
    assert say(parrot, {"prompt": "12"}).text == output.text
    render = draft_colors(parrot, "12")
    assert "".join(map(render, parrot.stream("12", params))) == output.text


def test_an_answer_in_a_chat_or_to_token_ids_begins_without_it(parrot: LLM) -> None:
    assert say(parrot, [parrot.chat_prompt("12")]).text == "ab ab"
    assert say(parrot, "<s>").text == "ab ab"  # there is no text before it


def test_a_chat_answers_what_its_prompt_is_answered(parrot: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5)
    talk = [{"role": "user", "content": "12"}]
    (wanted,) = parrot.generate(parrot.chat_prompt("12"), params)
    for messages, count in (("12", 1), (talk, 1), ([talk, talk], 2)):
        outputs = parrot.chat(messages, params)
        assert [output.token_ids for output in outputs] == [wanted.token_ids] * count
        assert outputs[0].prompt_token_ids == wanted.prompt_token_ids
    with pytest.raises(RequestError, match="nonsense"):
        parrot.chat("12", params, nonsense=1)


def test_a_stop_string_may_begin_with_that_space(parrot: LLM) -> None:
    output = say(parrot, "12", stop=[" a"])
    assert (output.text, output.token_ids[1:], output.finish_reason) == ("", [], "stop")


@pytest.mark.parametrize(
    ("stop", "text", "count"),
    [
        (["<|end|>"], " ab", 3),
        (["b<|end|>"], " a", 3),
        (["<|end|> a"], " ab", 4),
        (["a<|end|>"], " ab ab", 5),
        (["end"], " ab ab", 5),
        (["<|end|>", " ab"], "", 2),
        (["</s>", "b a"], " a", 4),  # text goes on over a special token that none names
        (["</s>", "b"], " a", 2),
    ],
)
def test_special_tokens_in_stop_strings_end_an_answer(
    parrot: LLM, stop: list[str], text: str, count: int
) -> None:
    output = say(parrot, "12", stop=stop)
    assert (output.text, len(output.token_ids)) == (text, count)
    assert output.finish_reason == ("length" if count == 5 else "stop")
    params = SamplingParams(temperature=0, max_tokens=5, stop=stop)
    assert "".join(delta.text for delta in parrot.stream("12", params)) == text


def test_a_special_token_counts_after_min_tokens_only(parrot: LLM) -> None:
    assert len(say(parrot, "12", stop=["<|end|>"], min_tokens=4).token_ids) == 5


def test_a_detokenizer_tells_the_stop_string_as_it_was_given() -> None:
    tokenizer = byte_level_with_added()
    ids = tokenizer.encode("ab", add_special_tokens=False)
    special = tokenizer.special_texts["<s>"]
    ours = Detokenizer(tokenizer, ["b<s>"])
    assert [ours.add(token) for token in (*ids, special)] == ["a", "", ""]
    assert (ours.stopped_by, ours.text) == ("b<s>", "a")
    told = Detokenizer(tokenizer, ["<s>c"])
    text = [told.add(token) for token in (*ids, special, *ids)]
    assert text == ["a", "b", "", "a", "b"]
    written = Detokenizer(tokenizer, ["<s>"])  # the same letters, as text
    assert "".join(written.add(tokenizer.encode(letter)[0]) for letter in "x<") == "x"


def test_bos_is_once_however_a_conversation_is_given(parrot: LLM) -> None:
    tokenizer = need_tokenizer(parrot.tokenizer)
    want = parrot.chat_prompt("12")
    assert say(parrot, tokenizer.render_chat("12")).prompt_token_ids == want
    assert say(parrot, "<s>12").prompt_token_ids == want
    assert say(parrot, "<s><s>12").prompt_token_ids == [1, *want]  # two were asked for
    assert say(parrot, "12").prompt_token_ids == tokenizer.encode("12")
    assert tokenizer.encode("<s>12") == [1, *want]  # as the file has it


def test_suppressed_tokens_never_come(parrot: LLM) -> None:
    tokenizer = need_tokenizer(parrot.tokenizer)
    assert tokenizer.backend is not None
    b = tokenizer.backend.token_to_id("b")
    assert b in say(parrot, "12").token_ids
    assert b not in say(parrot, "12", suppress_tokens=[b]).token_ids
    with pytest.raises(RequestError, match="suppress_tokens has token id 99999"):
        say(parrot, "12", suppress_tokens=[99999])
    with pytest.raises(RequestError, match="suppress_tokens has -1; wanted token ids >= 0"):
        SamplingParams(suppress_tokens=[-1])
    assert torch.isfinite(parrot.score([b])).all()
