"""Text streams: token ids in, text out as soon as it is certain.

Knows: how decoders join tokens to text. Does not know: stop strings or requests.
What a stream has given, `finish` included, is what decoding all ids at once gives; for the
continuation of a text, what it gives beyond that text.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pilotfish.tokenization.byte_letters import BYTE_LETTERS
from pilotfish.tokenization.tokenizer import Tokenizer

_CONTEXT = 8
"""Tokens before a continuation that decide how it is joined to them, and more."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream(Protocol):
    """Turns ids to text, one at a time."""

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        ...

    def finish(self) -> str:
        """What was held back; nothing may be pushed afterwards."""
        ...


def text_stream(
    tokenizer: Tokenizer, *, skip_special_tokens: bool = True, context: Sequence[int] = ()
) -> TextStream:
    """A stream whose joined text equals `tokenizer.decode(ids, skip_special_tokens=...)`.

    context: ids of the text that is continued; a decoder that strips the first space of a text
        leaves the continuation's, where there is text before it.
    Byte-level and SentencePiece decoders are followed token by token, in time that does not grow
    with the text. For others the whole text is decoded again for every token.
    """
    hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
    steps = tokenizer.decoder_steps or ()
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevelStream(tokenizer, hidden)
    if _is_sentence_piece(steps):
        return _PieceStream(tokenizer, hidden, steps, context)
    return _WholeTextStream(tokenizer, skip_special_tokens, hidden, context)


def _is_sentence_piece(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the steps are the usual ones in the usual order; others are not guessed at."""
    kinds = [step["type"] for step in steps]
    if kinds not in (
        ["Replace", "ByteFallback", "Fuse"],
        ["Replace", "ByteFallback", "Fuse", "Strip"],
    ):
        return False
    return "String" in steps[0]["pattern"] and (len(steps) == 3 or steps[3]["stop"] == 0)


class _ByteLevelStream:
    """Every token is bytes; text is certain up to the last whole UTF-8 letter."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._token_of = _token_lookup(tokenizer)
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        token = None if token_id in self._hidden else self._token_of(token_id)
        if token is None:
            return ""
        try:
            return self._decoder.decode(bytes(map(BYTE_LETTERS.__getitem__, token)))
        except KeyError:  # a letter that stands for no byte: the token is text as it is
            return self._decoder.decode(token.encode("utf-8"))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _PieceStream:
    """SentencePiece: pieces are text, byte tokens are joined to letters, the ends are stripped.

    A run of byte tokens is text only if all of it is UTF-8, so a run is held until it ends.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        hidden: frozenset[int],
        steps: Sequence[Mapping[str, Any]],
        context: Sequence[int],
    ) -> None:
        self._token_of = _token_lookup(tokenizer)
        self._hidden = hidden
        self._old: str = steps[0]["pattern"]["String"]
        self._new: str = steps[0]["content"]
        strip = steps[3] if len(steps) > 3 else None
        self._strip_letter: str = strip["content"] if strip else ""
        self._num_to_strip: int = strip["start"] if strip else 0
        self._run = bytearray()
        for token in context:
            if not self._num_to_strip:
                break
            self.push(token)
        self.finish()

    def push(self, token_id: int) -> str:
        token = None if token_id in self._hidden else self._token_of(token_id)
        if token is None:
            return ""
        token = token.replace(self._old, self._new)
        byte = _fallback_byte(token)
        if byte is not None:
            self._run.append(byte)
            return ""
        return self._strip(self._end_run() + token)

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _strip(self, text: str) -> str:
        """Takes the letters to strip from the beginning of the whole text."""
        while self._num_to_strip and text:
            if not text.startswith(self._strip_letter):
                self._num_to_strip = 0
                break
            text = text[1:]
            self._num_to_strip -= 1
        return text


def _fallback_byte(token: str) -> int | None:
    """The byte that "<0x0A>" stands for; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


class _WholeTextStream:
    """Any decoder: the whole text is decoded again for every token.

    A decoder that cleans up may join the last word to what follows, so text is given up to the
    last white space only. Should it still change text that was given, the rest comes in the end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool,
        hidden: frozenset[int],
        context: Sequence[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._cleans_up = tokenizer.cleans_up
        self._ids = [token for token in context if token not in hidden][-_CONTEXT:]
        self._given = tokenizer.decode(self._ids, skip_special_tokens=self._skip)

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        certain = text.rstrip("\ufffd")
        if self._cleans_up:
            certain = re.sub(r"\S*\s*$", "", certain).rstrip()
        if not certain.startswith(self._given):
            return ""
        new = certain[len(self._given) :]
        self._given = certain
        return new

    def finish(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        pairs = zip(text, self._given, strict=False)
        num_same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return text[num_same:]


def _token_lookup(tokenizer: Tokenizer) -> Any:
    assert tokenizer.backend is not None
    return tokenizer.backend.id_to_token
