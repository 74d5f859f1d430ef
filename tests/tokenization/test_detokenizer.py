"""Text as tokens come: equal to decoding at once, and cut at stop strings wherever tokens end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from pilotfish.tokenization.detokenizer import Detokenizer
from pilotfish.tokenization.text_stream import BYTE_LETTERS, TextStream, text_stream
from pilotfish.tokenization.tokenizer import Tokenizer, load_tokenizer, need_tokenizer
from pilotfish.weights import PreTokenizer, open_checkpoint
from support.vocabularies import CORPUS, sentence_piece_metadata


def spm(add_space_prefix: bool) -> Tokenizer:
    class File:
        metadata = sentence_piece_metadata(add_space_prefix)

    return need_tokenizer(Tokenizer.from_gguf(File(), {}))  # type: ignore[arg-type]


def byte_level_with_added() -> Tokenizer:
    """Added tokens with letters that stand for no byte are text as they are."""
    tokens = [*sorted(BYTE_LETTERS), "<a b>", "日本", "<éĠ>", "<s>"]

    class File:
        metadata = {  # noqa: RUF012
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 256 + [4, 4, 4, 3],
            "tokenizer.ggml.merges": [],
        }

    known = {"default": PreTokenizer()}
    return need_tokenizer(Tokenizer.from_gguf(File(), known))  # type: ignore[arg-type]


def word_piece() -> Tokenizer:
    """A decoder whose steps are not followed: the whole text is decoded for every token."""
    vocab = {"[UNK]": 0, "fish": 1, "##es": 2, ",": 3, "pilot": 4, "\ufffd": 5, "##\ufffd": 6}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()

    class Codec:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return list(backend.encode(text).ids)

        def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
            return str(backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    return Tokenizer(Codec(), backend, vocab_size=7, special_tokens={}, special_ids=frozenset())


@pytest.fixture(scope="module")
def vocabularies() -> dict[str, Tokenizer]:
    return {
        "byte-level": need_tokenizer(load_tokenizer(open_checkpoint("demo"))),
        "byte-level-added": byte_level_with_added(),
        "spm": spm(True),
        "spm-no-prefix": spm(False),
        "word-piece": word_piece(),
    }


KINDS = ["byte-level", "byte-level-added", "spm", "spm-no-prefix", "word-piece"]


def streamed(stream: TextStream, ids: Sequence[int]) -> str:
    return "".join([stream.push(token) for token in ids]) + stream.finish()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_is_the_decoded_text(
    vocabularies: dict[str, Tokenizer], kind: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer = vocabularies[kind]
    # Low ids are special and byte tokens; ids past the end are a model's padding.
    low = st.integers(0, min(300, tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(low | st.integers(0, tokenizer.vocab_size + 3), max_size=25))
    stream = text_stream(tokenizer, skip_special_tokens=skip)
    assert streamed(stream, ids) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_random_bytes_and_broken_letters(vocabularies: dict[str, Tokenizer], kind: str) -> None:
    """Bytes of valid, cut and mixed UTF-8, as single-byte tokens."""
    tokenizer = vocabularies[kind]
    assert tokenizer.backend is not None
    if kind.startswith("byte-level"):
        names = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    else:
        names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    known = {byte: tokenizer.backend.token_to_id(name) for byte, name in names.items()}
    alphabet = [0x41, 0x80, 0xBF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x90, 0xED, 0xA0, 0xFF]
    alphabet = [byte for byte in alphabet if known[byte] is not None]
    assert len(alphabet) >= 8

    @given(st.lists(st.sampled_from(alphabet), max_size=12))
    def check(run: list[int]) -> None:
        ids = [known[byte] for byte in run]
        assert streamed(text_stream(tokenizer), ids) == tokenizer.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("text", CORPUS)
def test_text_comes_as_early_as_it_is_certain(
    vocabularies: dict[str, Tokenizer], kind: str, text: str
) -> None:
    """After each token the text given is short only of unfinished bytes."""
    tokenizer = vocabularies[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = text_stream(tokenizer, skip_special_tokens=False)
    given_text = ""
    for count, token in enumerate(ids, 1):
        given_text += stream.push(token)
        so_far = tokenizer.decode(ids[:count], skip_special_tokens=False)
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        assert whole.startswith(given_text)
        if kind.startswith("byte-level"):
            assert given_text == so_far.rstrip("\ufffd")
        elif not is_byte(tokenizer, token):
            assert given_text == so_far


def is_byte(tokenizer: Tokenizer, token: int) -> bool:
    assert tokenizer.backend is not None
    return str(tokenizer.backend.id_to_token(token)).startswith("<0x")


class Letters:
    """A tokenizer whose tokens are the parts of a text."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        raise AssertionError("not needed")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(self.parts[index] for index in ids)


def detokenizer(parts: Sequence[str], stop: Sequence[str]) -> Detokenizer:
    tokenizer = Tokenizer(
        Letters(parts), None, vocab_size=len(parts), special_tokens={}, special_ids=frozenset()
    )
    return Detokenizer(tokenizer, stop)


def plain_cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """Letter by letter: the first moment at which the text ends with a stop string."""
    for end in range(len(text) + 1):
        hits = [s for s in stop if text[:end].endswith(s)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    text=st.text("ab", max_size=24),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    data=st.data(),
)
def test_stop_strings_cut_at_the_letter_wherever_tokens_end(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=len(text) + 1)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    want, by = plain_cut(text, stop)
    ours = detokenizer(parts, stop)
    given_text = ""
    for index in range(len(parts)):
        given_text += ours.add(index)
        assert want.startswith(given_text)
        if ours.stopped_by is None:
            seen = "".join(parts[: index + 1])
            held = seen[len(given_text) :]
            assert any(s.startswith(held) for s in stop) or not held
        else:
            break
    given_text += ours.finish()
    assert (given_text, ours.stopped_by) == (want, by)
    assert ours.text == given_text


def test_stop_strings_before_min_tokens_pass() -> None:
    ours = detokenizer(["one. ", "two", ". ", "three. ", "four"], [". "])
    shown = [ours.add(0, may_stop=False), ours.add(1, may_stop=False), ours.add(2, may_stop=False)]
    assert shown == ["one. ", "two", ". "]
    assert ours.add(3) == "three"
    assert ours.stopped_by == ". "
    assert ours.text == "one. two. three"


def test_stop_string_begun_before_min_tokens_and_ended_after() -> None:
    ours = detokenizer(["x<", "end", ">y"], ["<end>"])
    assert [ours.add(0, may_stop=False), ours.add(1), ours.add(2)] == ["x", "", ""]
    assert (ours.stopped_by, ours.finish(), ours.text) == ("<end>", "", "x")


def test_held_text_comes_at_the_end() -> None:
    ours = detokenizer(["a<e", "n"], ["<end>"])
    assert [ours.add(0), ours.add(1), ours.finish()] == ["a", "", "<en"]
    assert ours.stopped_by is None


def test_nothing_may_be_added_after_a_stop() -> None:
    ours = detokenizer(["a", "b"], ["a"])
    assert ours.add(0) == ""
    with pytest.raises(AssertionError):
        ours.add(1)


@pytest.mark.parametrize("kind", KINDS[:4])
@given(data=st.data())
def test_stop_strings_over_real_vocabularies(
    vocabularies: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = vocabularies[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=15))
    text = tokenizer.decode(ids)
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 6))
    stop = [text[a : a + n] for a, n in data.draw(st.lists(spans, max_size=2)) if text[a : a + n]]
    ours = Detokenizer(tokenizer, stop)
    for token in ids:
        ours.add(token)
        if ours.stopped_by is not None:
            break
    ours.finish()
    assert (ours.text, ours.stopped_by) == plain_cut(text, stop)


def test_work_per_token_does_not_grow(vocabularies: dict[str, Tokenizer]) -> None:
    """Counted, not timed: one look into the vocabulary for each token, and no decoding."""
    real = vocabularies["byte-level"]

    class Counting:
        calls = 0

        def id_to_token(self, index: int) -> Any:
            Counting.calls += 1
            return real.backend.id_to_token(index)  # type: ignore[union-attr]

        @property
        def decoder(self) -> Any:
            return real.backend.decoder  # type: ignore[union-attr]

    class NoDecoding(Letters):
        def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
            raise AssertionError("the whole text was decoded")

    counted = Tokenizer(
        NoDecoding([]), Counting(), vocab_size=1, special_tokens={}, special_ids=frozenset()
    )  # type: ignore[arg-type]
    ours = Detokenizer(counted, ["stop"])
    for index in range(2000):
        ours.add(20 + index)
    assert Counting.calls == 2000


class Tidy:
    """Decodes as tokenizers do that take the space before a full stop away."""

    words = ("pilot", "fish", ".", "swim")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(self.words[index] for index in ids).replace(" .", ".")


def test_spaces_that_cleaning_takes_away_are_not_given_too_early() -> None:
    """The space after a word is uncertain until the next token: a full stop takes it away."""
    tidy = Tokenizer(
        Tidy(), None, vocab_size=4, special_tokens={}, special_ids=frozenset(), plain_decoding=False
    )
    assert tidy.cleans_up
    for ids in ([0, 1, 2, 3, 2], [2, 2, 0], [0, 2]):
        stream = text_stream(tidy)
        pieces = [stream.push(index) for index in ids]
        assert "".join(pieces) + stream.finish() == Tidy().decode(ids, True)
