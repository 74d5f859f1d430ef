"""A SentencePiece vocabulary in a GGUF file gives transformers' tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.engine.tokenizer import Tokenizer, need_tokenizer
from pilotfish.weights import GGUFFile

from .gguf_files import write_gguf
from .vocabularies import CORPUS, sentence_piece_metadata

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
class Pair:
    """The same file, read by us and by transformers."""

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
    if not request.param:
        # transformers reads the flag from no GGUF file; its class for such vocabularies knows it.
        vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        flagged = LlamaTokenizer(vocab=vocab, merges=[], add_prefix_space=False).backend_tokenizer
        theirs.backend_tokenizer.pre_tokenizer = flagged.pre_tokenizer
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
