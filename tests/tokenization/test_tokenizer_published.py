"""Directories: what `tokenizer.json` says is what is used, whatever class the config names."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from pilotfish.errors import CheckpointError
from pilotfish.tokenization import files as tokenizer_files
from pilotfish.tokenization.tokenizer import Tokenizer, load_tokenizer
from pilotfish.weights import contraction_split, open_checkpoint
from pilotfish.weights.pretokenizer import PRE_TOKENIZERS

SPACE = "\u2581"
PIECES = [SPACE, "a", "b", "1", "2", "ab", "12", SPACE + "a", SPACE * 2, SPACE * 2 + "a", "[", "]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = st.text("ab 12\n[]é日", max_size=12) | st.lists(
    st.sampled_from(["a", "  a", " ", "12", "<s>", "</s>", " <t> ", "<t>b", "\n", "é", "[", "12 "]),
    max_size=8,
).map("".join)


def pieces(*, byte_fallback: bool = True) -> tokenizers.Tokenizer:
    """A SentencePiece vocabulary without its pipeline."""
    names = ["<unk>", "<s>", "</s>", *BYTES, *PIECES]
    pairs = [(SPACE, SPACE), ("a", "b"), ("1", "2"), (SPACE, "a"), (SPACE * 2, "a")]
    vocab = {name: index for index, name in enumerate(names)}
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=pairs,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def prepend() -> tokenizers.Tokenizer:
    made = pieces()
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    return made


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    made = pieces()
    made.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme=scheme, split=False
    )
    return made


def no_bytes() -> tokenizers.Tokenizer:
    made = pieces(byte_fallback=False)
    made.normalizer = normalizers.Replace(" ", SPACE)
    return made


def byte_level(*steps: Any, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """A vocabulary of bytes, of which two spaces, "12" and "a12" are tokens too."""
    g = "\u0120"
    names = ["<unk>", "<s>", "</s>", *LETTERS, g + g, "12", "a12", g + "a"]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[(g, g), ("1", "2"), (g, "a")],
            ignore_merges=ignore_merges,
        )
    )
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not ignore_merges)
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, letters])
    made.decoder = decoders.ByteLevel()
    return made


RULES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "prepend": prepend,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-never": lambda: metaspace("never"),
    "no-byte-fallback": no_bytes,
    "digits": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "no-digits": byte_level,
    "ignore-merges": lambda: byte_level(
        pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"), ignore_merges=True
    ),
}
CLASSES = [
    ("LlamaTokenizer", {"legacy": False}),
    ("LlamaTokenizer", {}),
    ("LlamaTokenizerFast", {"legacy": True}),
    ("GPT2Tokenizer", {}),
    ("Qwen2Tokenizer", {}),
    ("PreTrainedTokenizerFast", {}),
    ("NobodysTokenizer", {"auto_map": {"AutoTokenizer": ["code.Nobodys", None]}}),
    (None, {}),
]


def save(
    folder: Path, made: tokenizers.Tokenizer, *, adds_bos: bool = True, **config: Any
) -> tokenizers.Tokenizer:
    """Writes a directory as it would be published; returns its tokenizer.json, read."""
    made.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    made.add_tokens([AddedToken("<t>", lstrip=True, rstrip=True, normalized=False)])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, **config}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def read(folder: Path) -> Tokenizer:
    found = Tokenizer.from_directory(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=RULES)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Tokenizer], tokenizers.Tokenizer]:
    """One file under every class; what we read of each, and the file."""
    folder = tmp_path_factory.mktemp(request.param)
    ours = []
    for place, (name, more) in enumerate(CLASSES):
        given = {"tokenizer_class": name, **more} if name else more
        file = save(folder / str(place), RULES[request.param](), **given)
        ours.append(read(folder / str(place)))
    return ours, file


@given(text=TEXTS)
def test_ids_are_the_files_under_any_class(
    published: tuple[list[Tokenizer], tokenizers.Tokenizer], text: str
) -> None:
    ours, file = published
    for special in (True, False):
        want = file.encode(text, add_special_tokens=special).ids
        for one, (name, _) in zip(ours, CLASSES, strict=True):
            assert one.encode(text, add_special_tokens=special) == want, name


def test_the_rules_differ_from_one_another() -> None:
    """Each is seen by some text, so that none of the above holds for all of them."""
    texts = ["a", " a", "  1", "a12", "é", "</s>a", "<s> a"]
    seen = {}
    for name, make in RULES.items():
        made = make()
        made.add_special_tokens(["<unk>", "<s>", "</s>"])
        seen[name] = tuple(tuple(made.encode(text).tokens) for text in texts)
    assert len(set(seen.values())) == len(RULES)


def test_flags_of_added_tokens_are_the_files(tmp_path: Path) -> None:
    added = {"content": "<t>", "lstrip": False, "rstrip": False, "normalized": True}
    file = save(
        tmp_path,
        prepend(),
        added_tokens_decoder={"271": {**added, "single_word": True, "special": True}},
    )
    ours = read(tmp_path)
    assert ours.encode("a  <t>  b") == file.encode("a  <t>  b").ids
    assert ours.encode("a  <t>  b")[2] == 271  # both sides are stripped
    assert ours.special_ids == {0, 1, 2}


def test_a_token_that_only_the_config_has_is_added(tmp_path: Path) -> None:
    file = save(tmp_path, prepend(), added_tokens_decoder={"272": {"content": "<new>"}})
    ours = read(tmp_path)
    assert ours.encode("<new>") == [1, 272]
    assert len(file.encode("<new>").ids) > 2


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_whether_bos_is_added_is_the_files_word(tmp_path: Path, adds_bos: bool, said: bool) -> None:
    save(
        tmp_path, prepend(), adds_bos=adds_bos, add_bos_token=said, tokenizer_class="LlamaTokenizer"
    )
    ours = read(tmp_path)
    assert ours.encode("a") == ([1, 266] if adds_bos else [266])
    assert ours.encode("a", add_special_tokens=False) == [266]


def test_saved_truncation_and_padding_are_not_applied(tmp_path: Path) -> None:
    made = prepend()
    made.enable_truncation(2)
    made.enable_padding(length=30, pad_token="<unk>")
    save(tmp_path, made)
    assert read(tmp_path).encode("aaa") == [1, 266, 260, 260]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What transformers logs as it does for its users."""
    from transformers.utils import logging as hf_logging

    said, handler, level = list[str](), logging.Handler(), hf_logging.get_verbosity()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(hf_logging.get_logger("transformers"), "handlers", [handler])
    hf_logging.set_verbosity_warning()
    yield said
    hf_logging.set_verbosity(level)


def test_what_transformers_would_say_of_a_long_text_is_not_said(
    tmp_path: Path, heard: list[str]
) -> None:
    """Which texts are too long is the model's word, and no text is cleaned up."""
    from transformers import AutoTokenizer

    save(tmp_path, prepend(), model_max_length=4, clean_up_tokenization_spaces=True)
    AutoTokenizer.from_pretrained(tmp_path)("aaaaaa , a")
    assert "longer than" in heard.pop()
    ours = read(tmp_path)
    ids = ours.encode("aaaaaa , a")
    assert len(ids) > 4
    assert ours.decode(ids) == " aaaaaa , a"
    assert not heard


@pytest.mark.parametrize(
    "missing", [["sentencepiece"], ["protobuf"], ["sentencepiece", "protobuf"]]
)
def test_a_lone_sentence_piece_file_names_both_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    monkeypatch.setattr(
        tokenizer_files, "_is_installed", lambda name: name.split(".")[-1] not in missing
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_bytes(b"\x0e not a vocabulary")
    with pytest.raises(CheckpointError) as raised:
        load_tokenizer(open_checkpoint(str(tmp_path)))
    assert "wanted the packages sentencepiece and protobuf" in str(raised.value)
    assert f"pip install {' '.join(missing)})" in str(raised.value)


def test_a_lone_sentence_piece_file_puts_a_space_first_as_its_vocabulary_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' class for such files puts none before a text that begins with one."""
    import transformers

    made = prepend()
    want = save(tmp_path / "published", prepend(), adds_bos=False)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    found = transformers.LlamaTokenizer(vocab=model["vocab"], merges=merges, legacy=False)
    assert found.encode(" a", add_special_tokens=False) != want.encode(" a").ids
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: found)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    ours = read(tmp_path)
    for text in ("a", " a", "  a", "a</s>a", "</s> a", "", " ", "12", "é"):
        assert ours.encode(text, add_special_tokens=False) == want.encode(text).ids, text


# Mistral's large vocabularies

TEKKEN = PRE_TOKENIZERS["tekken"].pattern
WRONG = contraction_split(r"\p{N}{1,3}")


def mistral(pattern: str) -> tokenizers.Tokenizer:
    names = ["<unk>", "<s>", "</s>", *LETTERS, "12", "aB", "A1"]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[("1", "2"), ("a", "B")],
            ignore_merges=True,
        )
    )
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), letters]
    )
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize(
    ("config", "mark", "pattern", "is_mended"),
    [
        ({"model_type": "mistral"}, "[INST]", WRONG, True),
        ({"model_type": "mistral", "transformers_version": "5.1.0"}, "[INST]", WRONG, True),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "mistral"}},
            "[INST]",
            WRONG,
            True,
        ),
        ({"model_type": "llama"}, "[INST]", WRONG, False),
        ({"model_type": "mistral"}, "<other>", WRONG, False),
        ({"model_type": "mistral"}, "[INST]", TEKKEN, False),
    ],
)
def test_mistrals_wrong_expression_is_mended(
    tmp_path: Path, config: dict[str, Any], mark: str, pattern: str, is_mended: bool
) -> None:
    made = mistral(pattern)
    made.add_special_tokens([mark])
    file = save(tmp_path, made)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = read(tmp_path)
    told = [str(one.message) for one in said if "Mistral's own is used" in str(one.message)]
    assert len(told) == is_mended
    right = save(tmp_path / "right", mistral(TEKKEN or ""))
    text = "aB 12 <s>12"
    want = (right if is_mended else file).encode(text).ids
    assert ours.encode(text) == want
    assert (right.encode(text).ids != file.encode(text).ids) == (pattern == WRONG)
