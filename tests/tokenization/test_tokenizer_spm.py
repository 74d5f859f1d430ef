"""A SentencePiece vocabulary in a GGUF file gives the tokens of its published pipeline.

That pipeline puts a space before a text, and before what follows a token that is kept whole; what
transformers makes of such a file does neither for a text that begins with a space.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from pilotfish.tokenization.tokenizer import Tokenizer, need_tokenizer
from pilotfish.weights import GGUFFile
from pilotfish.weights.gguf_tokens import end_ids
from support.gguf_files import write_gguf
from support.vocabularies import CORPUS, sentence_piece_metadata

MODEL = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


@attrs.frozen
class FakeGGUF:
    """Metadata without a file."""

    metadata: dict[str, Any]


@attrs.frozen
class Pair:
    """The same file, read by us and by transformers, with the published pipeline."""

    ours: Tokenizer
    theirs: Any


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import AutoTokenizer, LlamaTokenizer

    folder: Path = tmp_path_factory.mktemp("spm")
    metadata = sentence_piece_metadata(add_space_prefix=request.param)
    path = write_gguf(folder / "spm.gguf", {}, {**MODEL, **metadata}, "llama")
    ours = need_tokenizer(Tokenizer.from_gguf(GGUFFile(path), {}))
    theirs = AutoTokenizer.from_pretrained(str(folder), gguf_file=path.name)
    prefix = [normalizers.Prepend("\u2581")] if request.param else []
    theirs.backend_tokenizer.normalizer = normalizers.Sequence(
        [*prefix, normalizers.Replace(" ", "\u2581")]
    )
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    if not request.param:
        # transformers reads the flag from no GGUF file; its class for such vocabularies knows it.
        vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        flagged = LlamaTokenizer(vocab=vocab, merges=[], add_prefix_space=False).backend_tokenizer
        theirs.backend_tokenizer.decoder = flagged.decoder
    return Pair(ours=ours, theirs=theirs)


@pytest.mark.parametrize("text", [*CORPUS, "<s>a</s> b", "a<tool> b", "<0x41>"])
def test_text_and_back(pair: Pair, text: str) -> None:
    ids = pair.ours.encode(text)
    assert ids == pair.theirs(text)["input_ids"]
    assert ids[0] == 1
    for skip in (True, False):
        want = pair.theirs.decode(ids, skip_special_tokens=skip)
        assert pair.ours.decode(ids, skip_special_tokens=skip) == want


@given(text=st.text(max_size=30) | st.text("ab the12\n_é日", max_size=30))
def test_any_text(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.theirs(text)["input_ids"]


def naive_ids(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece's own rule: the neighbours whose join has the best score, from the left."""
    ids = {token: index for index, token in enumerate(tokens)}
    pieces = list(text)
    while True:
        joins = [
            (-scores[ids[a + b]], place)
            for place, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in ids
        ]
        if not joins:
            break
        _, place = min(joins)
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return [
        index
        for piece in pieces
        for index in (
            [ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        )
    ]


@given(text=st.text("ab the12é日 ", max_size=30))
def test_merging_is_by_score_from_the_left(pair: Pair, text: str) -> None:
    metadata = sentence_piece_metadata()
    tokens, scores = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores"))
    prefix = "\u2581" if "Prepend" in repr(pair.ours.backend.normalizer) and text else ""  # type: ignore[union-attr]
    want = naive_ids(prefix + text.replace(" ", "\u2581"), tokens, scores)
    assert pair.ours.encode(text, add_special_tokens=False) == want


def test_a_space_is_put_before_what_follows_a_token_kept_whole() -> None:
    metadata = sentence_piece_metadata()
    ours = need_tokenizer(Tokenizer.from_gguf(FakeGGUF(metadata), {}))  # type: ignore[arg-type]
    assert ours.encode("a</s>a<tool>a", add_special_tokens=False) == [
        *ours.encode("a", add_special_tokens=False),
        2,
        *ours.encode("a", add_special_tokens=False),
        metadata["tokenizer.ggml.tokens"].index("<tool>"),
        *ours.encode("a", add_special_tokens=False),
    ]
    assert ours.encode("", add_special_tokens=False) == []


def test_special_ids_that_a_file_does_not_give() -> None:
    metadata = sentence_piece_metadata()
    given = {key: value for key, value in metadata.items() if not key.endswith("_token_id")}
    ours = need_tokenizer(Tokenizer.from_gguf(FakeGGUF(given), {}))  # type: ignore[arg-type]
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert ours.encode("a")[0] == 1
    assert end_ids(given) == (2,)


def test_a_file_that_has_merges_is_merged_by_them() -> None:
    tokens = ["<unk>", "\u2581", "a", "b", "ab", "\u2581a", "\n", "\n\n"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2] + [1] * 7 + [6] * 256,
        "tokenizer.ggml.scores": [float(i) for i in range(len(tokens))],
        "tokenizer.ggml.merges": ["a b", "\u2581 a", "\n \n"],
        "tokenizer.ggml.add_bos_token": False,
    }
    ours = need_tokenizer(Tokenizer.from_gguf(FakeGGUF(metadata), {}))  # type: ignore[arg-type]
    assert [tokens[i] for i in ours.encode("ab ab\n\n\u00e9")] == [
        *("ab", "\u2581", "ab", "\n\n", "<0xC3>", "<0xA9>")
    ]
