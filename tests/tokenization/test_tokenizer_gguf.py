"""GGUF vocabularies: how each name cuts text, whole words that are tokens, what ends an answer."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfish.errors import CheckpointError
from pilotfish.plugins import load_registry
from pilotfish.tokenization.byte_letters import BYTE_LETTERS
from pilotfish.tokenization.gguf import build_backend
from pilotfish.weights.gguf_tokens import end_ids
from pilotfish.weights.pretokenizer import PRE_TOKENIZERS

LETTERS = list(BYTE_LETTERS)
TEXT = "It's  1234 na\u00efve,(x)\n\u65e5\u672c e\u0301 $5"
CUTS = {
    "gpt-2": "It|'s| | 1234| na\u00efve|,(|x|)|\n|\u65e5\u672c| e|\u0301| $|5",
    "smollm": "It|'s|  |1|2|3|4| na\u00efve|,(|x|)|\n|\u65e5\u672c| e|\u0301| $|5",
    "falcon": "It|'|s| | |123|4| na\u00efve|,(|x|)|\n|\u65e5\u672c| e|\u0301| |$|5",
    "qwen2": "It|'s| | |1|2|3|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e|\u0301| $|5",
    "qwen35": "It|'s| | |1|2|3|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $|5",
    "tekken": "It|'s| | |1|2|3|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $|5",
    "gpt-4o": "It's| | |123|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $|5",
    "llama-bpe": "It|'s| | |123|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e|\u0301| $|5",
    "glm4": "It|'s| | |123|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e|\u0301| $|5",
    "minicpm5": "It|'s|  |123|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e|\u0301| $|5",
    # Its expression for signs has the letters of ASCII too, beside others.
    "deepseek-llm": "It|'|s|  |1234| na|\u00ef|ve|,(|x|)|\n|\u65e5\u672c| e|\u0301| $|5",
    "deepseek-coder": "It|'|s|  |1|2|3|4| na\u00efve|,(|x|)|\n|\u65e5\u672c| e|\u0301 $|5",
    "deepseek-v3": "It|'s|  |123|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $|5",
    "poro-chat": "It's| | 1234| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $5",
    "viking": "It's| | |1|2|3|4| na\u00efve|,(|x|)\n|\u65e5\u672c| e\u0301| $|5",
}
KNOWN = {**PRE_TOKENIZERS, **load_registry().architecture_for_gguf("llama").gguf_pretokenizers}


def byte_level(pre: str, words: tuple[str, ...] = (), merges: tuple[str, ...] = ()) -> Any:
    return build_backend(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*LETTERS, *words],
            "tokenizer.ggml.merges": merges,
        },
        KNOWN,
    )


@pytest.mark.parametrize("pre", CUTS)
def test_how_text_is_cut(pre: str) -> None:
    """As the vocabulary was trained; checked against vectors that were published with each."""
    pieces = byte_level(pre).pre_tokenizer.pre_tokenize_str(TEXT)
    texts = [bytes(BYTE_LETTERS[letter] for letter in piece).decode() for piece, _ in pieces]
    assert texts == CUTS[pre].split("|")


def test_every_name_cuts_any_text() -> None:
    for pre in KNOWN:
        backend = byte_level(pre)
        assert backend.decode(backend.encode(TEXT, add_special_tokens=False).ids) == TEXT


@pytest.mark.parametrize(
    ("pre", "want"),
    [
        *((pre, ["abc"]) for pre in ("llama-bpe", "tekken", "glm4", "minicpm5")),
        *((pre, ["a", "bc"]) for pre in ("qwen2", "gpt-2", "smollm")),
    ],
)
def test_a_piece_that_is_a_token_is_that_token_where_the_vocabulary_says_so(
    pre: str, want: list[str]
) -> None:
    backend = byte_level(pre, ("ab", "bc", "abc"), ("b c", "ab c"))
    assert backend.encode("abc", add_special_tokens=False).tokens == want


@pytest.mark.parametrize("merge", ["a x1", "ab", "a ", " a", "a b c", "q q", ""])
def test_a_merge_that_cannot_be(merge: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"merge 1 is .*; wanted two tokens of its vocabulary"
    ):
        byte_level("gpt-2", ("ab",), ("a b", merge))


def vocabulary(tokens: dict[str, int], **ids: int) -> dict[str, Any]:
    """tokens: text -> its kind."""
    return {
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": list(tokens.values()),
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items()},
    }


ENDS = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>"]


@pytest.mark.parametrize("end", ENDS)
def test_an_end_of_turn_is_known_by_its_text(end: str) -> None:
    tokens = {"<|eos|>": 3, "<|start|>": 3, end: 3, "Hi": 1}
    assert end_ids(vocabulary(tokens, eos=0)) == (0, 2)
    assert end_ids(vocabulary(tokens, eos=0, eot=2)) == (0, 2)
    assert end_ids(vocabulary(tokens)) == (2,)
    assert end_ids(vocabulary({**tokens, end: 4}, eos=0)) == (0, 2)
    assert end_ids(vocabulary({**tokens, end: 1}, eos=0)) == (0,)  # text, not a token of its own


def test_ends_that_a_file_names() -> None:
    tokens = {"a": 1, "b": 3, "c": 3, "d": 3}
    assert end_ids(vocabulary(tokens, eos=1, eot=3, eom=2)) == (1, 3, 2)
    assert end_ids(vocabulary(tokens, eos=1, eot=1)) == (1,)
    assert end_ids(vocabulary(tokens, eos=9)) == ()
    assert end_ids({"tokenizer.ggml.eos_token_id": 7}) == (7,)  # it has no vocabulary
    assert end_ids({}) == ()


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", None])
def test_a_vocabulary_of_another_kind_is_refused(model: str | None) -> None:
    metadata = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(CheckpointError, match=rf"tokenizer of model {model!r}; read: byte-level"):
        build_backend(metadata, KNOWN)
