"""Reading `tiktoken.model`: the bytes of each token, and the names of those that follow them.

Knows: both files of such a vocabulary, and what is wrong with one. Does not know: how text is cut.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from pilotfish.errors import CheckpointError
from pilotfish.weights.json_file import read_json_object

TIKTOKEN_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"
_MOST_BYTES = 64 << 20
_MOST_DIGITS = 9
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@attrs.frozen(kw_only=True)
class TiktokenVocabulary:
    """What the two files say. Made by `read_tiktoken`.

    directory: where they lie. tokens: bytes of each token; its place is its id.
    names: id -> text of further tokens.
    special: ids among `names` that are no text. special_tokens: "bos_token", ... -> text.
    config: the values of tokenizer_config.json.
    """

    directory: Path
    tokens: tuple[bytes, ...] = attrs.field(repr=False)
    names: Mapping[int, str] = attrs.field(repr=False)
    special: frozenset[int]
    special_tokens: Mapping[str, str]
    config: Mapping[str, Any] = attrs.field(repr=False)


def read_tiktoken(directory: Path, vocab_size: int | None = None) -> TiktokenVocabulary:
    """The vocabulary of a directory that has a `tiktoken.model`.

    vocab_size: ids that the model knows, where that is known; a higher id is refused.
    Raises CheckpointError naming the file, and the line or the id that cannot be right.
    """
    tokens = _read_tokens(directory / TIKTOKEN_FILE, vocab_size)
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{directory}: {TIKTOKEN_FILE} without {CONFIG_FILE}, which names the special tokens; "
            "wanted both: get it too, or take the tokenizer away and pass token ids"
        )
    config = read_json_object(file)
    names, special = _added_tokens(file, config, len(tokens), vocab_size)
    special_tokens = {
        key: text for key in _SPECIAL_KEYS if (text := _text_of(config.get(key))) is not None
    }
    listed = config.get("additional_special_tokens")
    no_text = {*special_tokens.values(), *_texts_of(listed)}
    return TiktokenVocabulary(
        directory=directory,
        tokens=tokens,
        names=names,
        special=special | {token for token, name in names.items() if name in no_text},
        special_tokens=special_tokens,
        config=config,
    )


def _read_tokens(path: Path, vocab_size: int | None) -> tuple[bytes, ...]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line:
            continue
        token, rank = _parse(path, number, line)
        if token in ranks:
            raise CheckpointError(
                f"{path}: line {number} has the token of rank {ranks[token]} again, with rank "
                f"{rank}; wanted each token once: get the file again"
            )
        if vocab_size is not None and rank >= vocab_size:
            raise CheckpointError(
                f"{path}: line {number} has rank {rank}, and the model's vocab_size is "
                f"{vocab_size}; wanted lower ranks: the file belongs to another model"
            )
        ranks[token] = rank
    _check_ranks(path, ranks)
    return tuple(sorted(ranks, key=ranks.__getitem__))


def _lines(path: Path) -> list[bytes]:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MOST_BYTES:
            raise CheckpointError(
                f"{path}: {num_bytes} bytes; wanted a vocabulary, at most {_MOST_BYTES} bytes of "
                "lines 'base64 rank'"
            )
        return path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    text, _, rank = line.partition(b" ")
    try:
        token = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        token = b""
    if not token or not rank.isdigit() or len(rank) > _MOST_DIGITS:
        shown = line[:40].decode("ascii", "backslashreplace")
        raise CheckpointError(
            f"{path}: line {number} is {shown!r}; wanted 'base64 rank': get the file again"
        )
    return token, int(rank)


def _check_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Every rank from 0 once, and every byte: then there are ids for any text."""
    seen: set[int] = set()
    for rank in ranks.values():
        if rank in seen:
            raise CheckpointError(
                f"{path}: two tokens have rank {rank}; wanted each rank once: get the file again"
            )
        seen.add(rank)
    missing = next((rank for rank in range(len(ranks)) if rank not in seen), None)
    if missing is not None:
        raise CheckpointError(
            f"{path}: {len(ranks)} tokens and none of rank {missing}; wanted every rank from 0 to "
            f"{len(ranks) - 1}: get the file again"
        )
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise CheckpointError(
            f"{path}: no token for {len(absent)} of the 256 bytes, 0x{absent[0]:02X} the first; "
            "wanted one for each, as any text is made of them: get the file again"
        )


def _added_tokens(
    file: Path, config: Mapping[str, Any], num_tokens: int, vocab_size: int | None
) -> tuple[dict[int, str], frozenset[int]]:
    """id -> name of the tokens after those of the ranks; and the ids that are no text."""
    given = config.get("added_tokens_decoder") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(
            f"{file}: added_tokens_decoder is {given!r:.40}; wanted an object of id -> token"
        )
    names: dict[int, str] = {}
    special: set[int] = set()
    for key, token in given.items():
        name = _text_of(token)
        if not (key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS) or not name:
            raise CheckpointError(
                f"{file}: added_tokens_decoder has {key!r:.40}: {token!r:.60}; wanted an id and a "
                "token with its content"
            )
        index = int(key)
        if index < num_tokens or (vocab_size is not None and index >= vocab_size):
            limit = "" if vocab_size is None else f" to {vocab_size - 1}"
            raise CheckpointError(
                f"{file}: added_tokens_decoder has {name!r} as id {index}; wanted ids from "
                f"{num_tokens}, behind those of {TIKTOKEN_FILE}{',' if limit else ''}{limit}: "
                "the two files are not of one model"
            )
        if name in names.values():
            raise CheckpointError(
                f"{file}: added_tokens_decoder has {name!r} twice; wanted it once"
            )
        names[index] = name
        if isinstance(token, Mapping) and token.get("special"):
            special.add(index)
    return names, frozenset(special)


def _text_of(token: Any) -> str | None:
    """The text of a token, given as text or as a record with its content."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _texts_of(tokens: Any) -> Iterable[str]:
    found = map(_text_of, tokens) if isinstance(tokens, list) else ()
    return (text for text in found if text is not None)
