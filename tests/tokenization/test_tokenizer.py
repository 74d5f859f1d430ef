"""Tokenizers: the demo's equals the published one on varied text; directories; GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from pilotfish.errors import CheckpointError, RequestError
from pilotfish.tokenization.chat_template import ChatTemplate
from pilotfish.tokenization.tokenizer import Tokenizer, load_tokenizer, need_tokenizer
from pilotfish.weights import PreTokenizer, contraction_split, open_checkpoint
from pilotfish.weights.demo import find_demo
from support.gguf_files import read_once
from support.vocabularies import CORPUS

MESSAGES = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " Why?  "}],
    [
        {"role": "user", "content": "1 + 1? <b>&</b>"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "🐟"},
    ],
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return need_tokenizer(load_tokenizer(open_checkpoint("demo")))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The demo's vocabulary as transformers reads it, with the digits cut off as published."""
    from transformers import AutoTokenizer

    path = find_demo()
    with read_once():
        read = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    read.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return read


@pytest.mark.parametrize("text", CORPUS)
def test_demo_encodes_and_decodes_as_transformers_does(
    ours: Tokenizer, theirs: Any, text: str
) -> None:
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    for skip in (True, False):
        want = theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special_tokens=skip) == want
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(
        text, add_special_tokens=False
    )


@given(text=st.text(max_size=40) | st.text("ab 12\n\t'.<|>_é日", max_size=40))
def test_demo_encodes_any_text_as_transformers_does(
    ours: Tokenizer, theirs: Any, text: str
) -> None:
    assert ours.encode(text) == theirs(text)["input_ids"]


@given(ids=st.lists(st.integers(0, 49151), max_size=20), skip=st.booleans())
def test_demo_decodes_any_ids_as_transformers_does(
    ours: Tokenizer, theirs: Any, ids: list[int], skip: bool
) -> None:
    want = theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special_tokens=skip) == want


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("prompted", [True, False])
def test_demo_renders_chats_as_transformers_does(
    ours: Tokenizer, theirs: Any, messages: list[dict[str, str]], prompted: bool
) -> None:
    want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    assert ours.render_chat(messages, add_generation_prompt=prompted) == want
    assert (
        ours.encode_chat(messages, add_generation_prompt=prompted)
        == theirs(want, add_special_tokens=False)["input_ids"]
    )


def test_demo_special_tokens(ours: Tokenizer, theirs: Any) -> None:
    assert ours.vocab_size == len(theirs) == 49152
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids == frozenset(range(17))
    assert ours.eos_token_ids == (2, 0)
    assert ours.render_chat("Hi") == ours.render_chat([{"role": "user", "content": "Hi"}])


TEMPLATES = [
    "{% for m in messages %}{% if m.role == 'user' %}\n  {{ bos_token }}{{ m['content'] | trim }}\n"
    "{% elif loop.last %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
    "{% continue %}{% endif %}{% endfor %}\n",
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ tools is none }}",
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
    "{%- endfor -%}{{ ns.n }} {{ strftime_now('%Y') }} {{ documents is none }}{{ extra }}",
    "{% for m in messages %}{% if loop.index0 > 0 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages", MESSAGES)
def test_templates_render_as_in_transformers(
    theirs: Any, template: str, messages: list[dict[str, str]]
) -> None:
    variables = {"extra": "&<'\"é"} if "extra" in template else {}
    want = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)
    special = theirs.special_tokens_map
    got = ChatTemplate(template, special).render(messages, add_generation_prompt=False, **variables)
    assert got == want


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].role + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_template_that_refuses_or_reaches_out(template: str) -> None:
    with pytest.raises(RequestError, match="cannot render these messages"):
        ChatTemplate(template).render(MESSAGES[0])


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages | from_json }}", "{% do x %}"])
def test_template_that_is_not_valid(template: str) -> None:
    with pytest.raises(RequestError, match=r"not valid, line 1: .*; pass another as chat_template"):
        ChatTemplate(template).render(MESSAGES[0])


def test_no_tokenizer_and_no_template(tmp_path: Path, ours: Tokenizer) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "toy-of-nobody"}')
    assert load_tokenizer(open_checkpoint(str(tmp_path))) is None
    with pytest.raises(RequestError, match="no tokenizer; pass token ids"):
        need_tokenizer(None)
    bare = Tokenizer(ours, ours.backend, vocab_size=1, special_tokens={}, special_ids=frozenset())  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no chat template; pass a plain prompt"):
        bare.render_chat("Hi")


@pytest.fixture
def hf_directory(tmp_path: Path) -> Path:
    """A trained byte-level vocabulary with BOS, saved as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    saved = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    saved.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "toy-of-nobody", "eos_token_id": 9}')
    return tmp_path


def test_directory_is_read_as_transformers_reads_it(hf_directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(hf_directory))
    ours = need_tokenizer(load_tokenizer(open_checkpoint(str(hf_directory))))
    for text in CORPUS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ids[0] == 0
        assert ours.encode(text, add_special_tokens=False) == ids[1:]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    assert (ours.vocab_size, ours.eos_token_ids) == (len(theirs), (9,))
    assert ours.special_ids == {0, 1}
    want = theirs.apply_chat_template(MESSAGES[0], tokenize=False)
    assert ours.render_chat(MESSAGES[0]) == want == "<s>Hi"
    assert ours.encode_chat("Hi") == theirs("Hi")["input_ids"]


def test_broken_tokenizer_file(hf_directory: Path) -> None:
    (hf_directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_tokenizer(open_checkpoint(str(hf_directory)))


@attrs.frozen
class FakeGGUF:
    """Metadata without a file."""

    metadata: Mapping[str, Any]


def gguf_tokenizer(
    metadata: Mapping[str, Any], pretokenizers: Mapping[str, PreTokenizer] | None = None
) -> Tokenizer | None:
    keyed = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    known = {"default": PreTokenizer()} if pretokenizers is None else pretokenizers
    return Tokenizer.from_gguf(FakeGGUF(keyed), known)  # type: ignore[arg-type]


BYTE_LEVEL = {
    "model": "gpt2",
    "tokens": [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "123", "<b>", "<t>"],
    "token_type": [1] * 258 + [3, 4],
    "merges": ["1 2", "12 3"],
    "bos_token_id": 258,
}


def test_gguf_without_a_vocabulary_or_of_an_unknown_kind() -> None:
    assert gguf_tokenizer({}) is None
    with pytest.raises(CheckpointError, match="tokenizer of model 'bert'"):
        gguf_tokenizer({"model": "bert", "tokens": ["a"]})
    with pytest.raises(CheckpointError, match=r"ggml.pre is 'strange'; read: default"):
        gguf_tokenizer({**BYTE_LEVEL, "pre": "strange"})


def test_gguf_pretokenizer_of_a_plugin_cuts_text() -> None:
    known = {"a": PreTokenizer(contraction_split(r"\p{N}")), "b": PreTokenizer()}
    cut = need_tokenizer(gguf_tokenizer({**BYTE_LEVEL, "pre": "a"}, known))
    whole = need_tokenizer(gguf_tokenizer({**BYTE_LEVEL, "pre": "b"}, known))
    tokens = BYTE_LEVEL["tokens"]
    assert [tokens[i] for i in cut.encode("123")] == ["1", "2", "3"]  # type: ignore[index]
    assert [tokens[i] for i in whole.encode("123")] == ["123"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("metadata", "default", "want"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"add_bos_token": False}, True, False),
        ({"add_bos_token": True}, False, True),
    ],
)
def test_gguf_bos(metadata: dict[str, bool], default: bool, want: bool) -> None:
    known = {"default": PreTokenizer(add_bos=default)}
    tokenizer = need_tokenizer(gguf_tokenizer({**BYTE_LEVEL, **metadata}, known))
    ids = tokenizer.encode("12")
    assert ids == ([258, 256] if want else [256])
    assert tokenizer.encode("12", add_special_tokens=False) == [256]


def test_gguf_control_and_user_defined_tokens() -> None:
    tokenizer = need_tokenizer(gguf_tokenizer(BYTE_LEVEL))
    assert tokenizer.encode("<b>12<t>") == [258, 256, 259]
    assert tokenizer.special_ids == {258}
    assert tokenizer.decode([258, 256, 259]) == "12<t>"
    assert tokenizer.decode([258, 256, 259], skip_special_tokens=False) == "<b>12<t>"


def test_a_lone_surrogate_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(RequestError, match="wanted Unicode text without lone surrogates"):
        ours.encode("a\ud800b")


@pytest.mark.parametrize("index", [-1, 10**9])
def test_gguf_special_ids_outside_the_vocabulary_are_no_tokens(index: int) -> None:
    metadata = {**BYTE_LEVEL, "tokenizer.ggml.padding_token_id": index}
    tokenizer = need_tokenizer(gguf_tokenizer(metadata))
    assert "pad_token" not in tokenizer.special_tokens
