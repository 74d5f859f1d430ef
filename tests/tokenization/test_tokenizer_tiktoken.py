"""tiktoken.model: token for token what tiktoken makes of it; files that cannot be right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.cli import main
from pilotfish.config import ModelConfig
from pilotfish.errors import CheckpointError, PluginError, RequestError
from pilotfish.registry import ArchitectureSpec
from pilotfish.testing.checkpoints import save_with_transformers, tiny_config
from pilotfish.tokenization.detokenizer import Detokenizer
from pilotfish.tokenization.files import describe_tokenizer
from pilotfish.tokenization.tiktoken_file import TIKTOKEN_FILE
from pilotfish.tokenization.token_texts import token_texts
from pilotfish.tokenization.tokenizer import (
    Tokenizer,
    load_tokenizer,
    need_tokenizer,
)
from pilotfish.weights import TiktokenRules, open_checkpoint
from pilotfish_kimi_k25.examples import TEXT
from pilotfish_kimi_k25.tokenizer import TIKTOKEN
from support.tiktoken_files import (
    BYTES,
    NAMES,
    PARTS,
    chinese_tokens,
    demo_tokens,
    encoding,
    lines,
    tokenizer_config,
    write_tokenizer,
)
from support.vocabularies import CORPUS

SMALL = (*BYTES, *chinese_tokens())
FIRST = len(SMALL)
"""The first id behind the ranks of the small vocabulary."""

TEXTS = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), max_size=14)


@attrs.frozen
class Pair:
    """Our tokenizer and tiktoken's, of one vocabulary."""

    ours: Tokenizer
    theirs: tiktoken.Encoding

    def check(self, text: str) -> None:
        ids = self.ours.encode(text)
        assert ids == self.theirs.encode(text, allowed_special="all")
        assert self.ours.decode(ids, skip_special_tokens=False) == self.theirs.decode(ids) == text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    tokens = demo_tokens()
    folder = write_tokenizer(tmp_path_factory.mktemp("demo"), tokens)
    ours = Tokenizer.from_tiktoken(folder, TIKTOKEN, len(tokens) + 256)
    return Pair(ours, encoding(tokens, TIKTOKEN, NAMES))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "small", SMALL)


def read(folder: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken(folder, TIKTOKEN, FIRST + 256)


@pytest.mark.parametrize("text", [*CORPUS, "".join(PARTS), " ".join(PARTS)])
def test_texts_as_tiktoken_makes_them(demo: Pair, text: str) -> None:
    demo.check(text)


@settings(max_examples=400)
@given(parts=TEXTS)
def test_any_text_as_tiktoken_makes_it(demo: Pair, parts: list[str]) -> None:
    demo.check("".join(parts))


@pytest.mark.parametrize(
    "part", ["A", "a", " ", "中", "ab c", "\n ", "1", "'", "aB", "\u0301", "你好 "]
)
def test_long_texts_as_tiktoken_makes_them(demo: Pair, part: str) -> None:
    demo.check(part * (100_000 // len(part)))


@given(data=st.data())
def test_any_ids_as_tiktoken_decodes_them(demo: Pair, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, demo.ours.vocab_size - 1), max_size=20))
    assert demo.ours.decode(ids, skip_special_tokens=False) == demo.theirs.decode(ids)
    told = Detokenizer(demo.ours)
    told_text = "".join(told.add(token) for token in ids) + told.finish()
    assert told_text == demo.ours.decode(ids)


@settings(max_examples=150)
@given(
    words=st.lists(st.text("ab", min_size=2, max_size=5), min_size=1, max_size=25, unique=True),
    texts=st.lists(st.text("ab", max_size=40), min_size=1, max_size=20),
)
def test_merges_of_any_ranks_are_tiktokens(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], texts: list[str]
) -> None:
    """Ranks in no order of length: a token may be made of parts that come after it."""
    tokens = [*BYTES, *(word.encode() for word in words)]
    folder = write_tokenizer(tmp_path_factory.getbasetemp() / "merges", tokens)
    pair = Pair(
        Tokenizer.from_tiktoken(folder, TIKTOKEN, len(tokens) + 256),
        encoding(tokens, TIKTOKEN, NAMES),
    )
    for text in texts:
        pair.check(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("中文English混合汉字abc", ["中文", "English", "混合汉字", "abc"]),
        ("北京市 Pascal々 中", ["北京市", " Pascal", "々", " ", "中"]),
        (" camelCase HTTPServer", [" camel", "Case", " HTTPServer"]),
        ("we'll I'VE it's's", ["we'll", " I'VE", " it's", "'s"]),
        ("-dash (x) 'quoted'", ["-dash", " (", "x", ")", " '", "quoted", "'"]),
        ("12345 67½", ["123", "45", " ", "67½"]),
        ("x!?\r\n\n/y ...", ["x", "!?\r\n\n", "/y", " ..."]),
        ("a  \n \n  b\t\tc   ", ["a", "  \n \n", " ", " b", "\t", "\tc", "   "]),
        ("日本ぁ한국é\u0301", ["日本", "ぁ한국é\u0301"]),
    ],
)
def test_pattern_cuts_as_published(text: str, want: list[str]) -> None:
    import tokenizers

    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(TIKTOKEN.pattern), "isolated")
    assert [piece for piece, _ in cut.pre_tokenize_str(text)] == want


def test_tokens_behind_the_ranks(small: Path) -> None:
    ours = read(small)
    assert ours.vocab_size == FIRST + 256
    assert ours.encode("[BOS]a<think><|im_end|>") == [FIRST, 97, FIRST + 22, FIRST + 2]
    assert ours.encode(f"<|reserved_token_{FIRST + 5}|>") == [FIRST + 5]
    assert ours.special_ids == {FIRST + place for place in (0, 1, 2, 3, 4, 17, 254, 255)}
    # As published: what is no special token stays in the text, named or not.
    ids = [FIRST, 97, FIRST + 22, FIRST + 5, FIRST + 2]
    assert ours.decode(ids) == f"a<think><|reserved_token_{FIRST + 5}|>"
    want = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    assert ours.special_tokens == want
    assert ours.eos_token_ids == (FIRST + 1,)
    write_tokenizer(small, SMALL, pad_token={"content": "[PAD]"})
    assert read(small).special_tokens == want


def test_nothing_is_added_to_a_text(small: Path) -> None:
    assert read(small).encode("a") == read(small).encode("a", add_special_tokens=False) == [97]


def test_no_reserved_token_is_beyond_what_the_model_knows(small: Path) -> None:
    (small / "tokenizer_config.json").write_text("{}")
    ours = Tokenizer.from_tiktoken(small, TIKTOKEN, FIRST + 9)
    assert ours.vocab_size == FIRST + 9
    assert ours.encode(f"<|reserved_token_{FIRST + 8}|>") == [FIRST + 8]
    assert len(ours.encode(f"<|reserved_token_{FIRST + 9}|>")) > 1
    assert ours.eos_token_ids == ()


def test_a_name_may_be_behind_the_reserved_ones(small: Path) -> None:
    config = tokenizer_config(FIRST)
    config["added_tokens_decoder"][str(FIRST + 258)] = {"content": "<far>"}
    (small / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_tiktoken(small, TIKTOKEN, FIRST + 300)
    assert ours.encode("<far>") == [FIRST + 258]
    assert ours.vocab_size == FIRST + 259


def test_chat_template_of_either_file(small: Path) -> None:
    ours = read(small)
    assert ours.encode_chat("你好") == ours.encode(
        "<|im_user|>user<|im_middle|>你好<|im_end|><|im_assistant|>assistant<|im_middle|>"
    )
    (small / "chat_template.jinja").unlink()
    assert read(small).chat_template is None
    for template in ("{{ bos_token }}x", [{"name": "default", "template": "{{ bos_token }}x"}]):
        write_tokenizer(small, SMALL, chat_template=template)
        (small / "chat_template.jinja").unlink()
        assert read(small).encode_chat("") == [FIRST, ord("x")]


def test_ranks_in_any_order_of_lines(small: Path) -> None:
    (small / TIKTOKEN_FILE).write_bytes(b"\n".join(reversed(lines(SMALL))))
    assert read(small).encode("你好 a") == encoding(SMALL, TIKTOKEN, NAMES).encode("你好 a")


def _without(place: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda given: given[:place] + given[place + 1 :]


def _with(line: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda given: [*given, line]


BROKEN = {
    "bad base64": (_with(b"a*== 300"), r"line \d+ is 'a\*== 300'; wanted 'base64 rank'"),
    "no rank": (_with(b"YWE="), "is 'YWE='; wanted 'base64 rank'"),
    "no token": (_with(b" 300"), "is ' 300'; wanted 'base64 rank'"),
    "no number": (_with(b"YWE= x"), "is 'YWE= x'; wanted 'base64 rank'"),
    "negative": (_with(b"YWE= -1"), "is 'YWE= -1'; wanted 'base64 rank'"),
    "many digits": (_with(b"YWE= " + b"9" * 5000), "wanted 'base64 rank'"),
    "a pointer": (lambda _: [b"version https://git-lfs.github.com/spec/v1"], "line 1 is 'version"),
    "token twice": (_with(b"YQ== %d" % FIRST), "the token of rank 97 again"),
    "rank twice": (_with(b"YWE= 97"), "two tokens have rank 97; wanted each rank once"),
    "gap": (_without(300 if FIRST > 301 else 260), r"none of rank \d+; wanted every rank from 0"),
    "no byte": (
        lambda _: lines([b for b in BYTES if b != b"a"]),
        "no token for 1 of the 256 bytes",
    ),
    "empty": (lambda _: [], "no token for 256 of the 256 bytes, 0x00 the first"),
    "other model": (_with(b"YWE= %d" % (FIRST + 256)), f"vocab_size is {FIRST + 256}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_file_that_cannot_be_right(small: Path, name: str) -> None:
    change, message = BROKEN[name]
    (small / TIKTOKEN_FILE).write_bytes(b"\n".join(change(lines(SMALL))))
    with pytest.raises(CheckpointError, match=message) as caught:
        read(small)
    assert str(small / TIKTOKEN_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_too_large_is_not_read(small: Path) -> None:
    with (small / TIKTOKEN_FILE).open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on disk
    with pytest.raises(CheckpointError, match="1099511627776 bytes; wanted a vocabulary"):
        read(small)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"97": {"content": "<x>"}}, f"'<x>' as id 97; wanted ids from {FIRST}"),
        ({str(FIRST + 256): {"content": "<x>"}}, f"as id {FIRST + 256}; wanted"),
        ({"x": {"content": "<x>"}}, "has 'x'"),
        ({str(FIRST): {}}, "wanted an id and a token with its content"),
        ({str(FIRST): {"content": ""}}, "wanted an id and a token with its content"),
        ({str(FIRST): "<x>", str(FIRST + 1): "<x>"}, "'<x>' twice"),
        ({str(FIRST): "a"}, f"names id {FIRST} 'a', which is the text of id 97 too"),
        ({str(FIRST): f"<|reserved_token_{FIRST + 1}|>"}, "is the text of id"),
        ([1], r"added_tokens_decoder is \[1\]"),
    ],
)
def test_names_that_cannot_be_right(small: Path, added: object, message: str) -> None:
    write_tokenizer(small, SMALL, added_tokens_decoder=added)
    with pytest.raises(CheckpointError, match=message):
        read(small)


def test_names_are_wanted(small: Path) -> None:
    (small / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tiktoken.model without tokenizer_config.json"):
        read(small)


# Whole checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    options = {**TEXT, "vocab_size": FIRST + 256, "eos_token_id": FIRST + 1}
    save_with_transformers(tiny_config("DeepseekV3ForCausalLM", options), folder)
    return write_tokenizer(folder, SMALL)


def test_generate_and_inspect_of_such_a_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = read(checkpoint)
    greedy = ("--max-tokens", "6", "--temperature", "0", "--ignore-eos", "--json")
    file = tmp_path / "ids.jsonl"
    file.write_text(json.dumps({"prompt_token_ids": ours.encode("你好 [BOS]")}))
    outputs = []
    for prompt in (("--prompt", "你好 [BOS]"), ("--input-file", str(file))):
        assert main(["generate", str(checkpoint), *prompt, *greedy]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0]["token_ids"] == outputs[1]["token_ids"]
    assert outputs[0]["text"] == ours.decode(outputs[0]["token_ids"])
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == "tiktoken.model"


def test_texts_of_tokens_compare_with_other_formats(checkpoint: Path) -> None:
    model = ModelConfig(
        model="x", path=str(checkpoint), weight_format="safetensors", huggingface_config=None
    )
    texts = token_texts(model)
    assert texts is not None
    assert (texts[97], texts[32], texts[FIRST]) == ("a", "Ġ", "[BOS]")


def _bare(folder: Path, *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "toy-of-nobody", "vocab_size": 900}')
    for name in files:
        (folder / name).write_bytes(b"\n".join(lines(SMALL)))
    return folder


def test_tokenizer_json_comes_first(tmp_path: Path, small: Path) -> None:
    read(small).backend.save(str(small / "tokenizer.json"))  # type: ignore[union-attr]
    checkpoint = open_checkpoint(str(_bare(small)))
    rules = TiktokenRules(pattern=".", num_reserved=256)
    checkpoint = attrs.evolve(checkpoint, tiktoken=rules)
    assert describe_tokenizer(checkpoint) == "tokenizer.json"
    assert need_tokenizer(load_tokenizer(checkpoint)).encode("你好") == read(small).encode("你好")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "tiktoken.model",
            r"plugin does not say how its text is cut \(ArchitectureSpec.tiktoken\)",
        ),
        ("other.tiktoken", "wanted one of tokenizer.json"),
        ("spiece.model", "wanted one of tokenizer.json"),
    ],
)
def test_no_tokenizer_names_what_was_found(tmp_path: Path, name: str, why: str) -> None:
    checkpoint = open_checkpoint(str(_bare(tmp_path, name)))
    assert load_tokenizer(checkpoint) is None
    with pytest.raises(RequestError, match=rf"has no tokenizer that is read: .*{name}.*{why}"):
        need_tokenizer(None, tmp_path)
    assert describe_tokenizer(checkpoint).startswith(f"none that is read: {tmp_path / name}")


def test_no_plugin_reads_it_on_the_command_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == "none"
    write_tokenizer(tmp_path, SMALL)
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert "tiktoken.model was found" in said
    assert "give prompt_token_ids" in said
    file = tmp_path / "ids.jsonl"
    file.write_text('{"prompt_token_ids": [1, 2]}')
    assert main(["generate", str(tmp_path), "--input-file", str(file), "--max-tokens", "1"]) == 0


def test_rules_are_wanted_of_a_plugin() -> None:
    with pytest.raises(
        PluginError, match=r"tiktoken is '\\\\s'; wanted TiktokenRules\(pattern=...\)"
    ):
        ArchitectureSpec(names=("A",), config="a:A", model="a:A", tiktoken=r"\s")  # type: ignore[arg-type]


def test_tokenizer_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(_bare(tmp_path)))
    (tmp_path / "tokenizer.model").write_bytes(bytes(range(256)) * 20)
    assert describe_tokenizer(checkpoint) == "tokenizer.model"
    with pytest.raises(CheckpointError, match=r"tokenizer.model: the tokenizer cannot") as caught:
        load_tokenizer(checkpoint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _bare(small)
    trap = "raise SystemExit('this code was run')"
    (small / "tokenization_kimi.py").write_text(trap)
    backend = read(small).backend
    assert backend is not None
    backend.save(str(small / "tokenizer.json"))
    ours = need_tokenizer(load_tokenizer(open_checkpoint(str(small))))
    assert ours.encode("你好<think>") == read(small).encode("你好<think>")
    assert ours.chat_template is not None
    (small / "tokenizer.json").unlink()
    (small / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"vocab.json: the tokenizer cannot be read"):
        load_tokenizer(open_checkpoint(str(small)))
    assert "custom code" not in capsys.readouterr().out
