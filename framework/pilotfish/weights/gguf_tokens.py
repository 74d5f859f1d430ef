"""The tokens with a meaning of their own in a GGUF file's vocabulary.

Knows: the keys that name them, and what a file means that does not say. Does not know: how text is
cut, or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError

_KEY = "tokenizer.ggml."
_KINDS: Mapping[str, type] = {"tokens": str, "merges": str, "scores": float, "token_type": int}
_OF_EACH_TOKEN = ("scores", "token_type")
_CONTROL, _USER_DEFINED = 3, 4
_SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""What a SentencePiece vocabulary means by names that its file does not give."""
_END_KEYS = ("eos", "eot", "eom")
_END_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "[EOT]",
        "</s>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""Files of 2024 and before name one end, of a text; an answer in a chat ends with another."""


def check_vocabulary(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError for a vocabulary that is no lists of texts and numbers, one a token.

    path: the file's, for errors. A file may have none.
    """
    for name in ("model", "pre"):
        value = metadata.get(_KEY + name, "")
        if not isinstance(value, str):
            raise CheckpointError(f"{path}: {_KEY}{name} is {value!r:.60}; wanted a name")
    lists = {name: metadata[_KEY + name] for name in _KINDS if _KEY + name in metadata}
    for name, value in lists.items():
        kind = _KINDS[name]
        if not isinstance(value, list) or not set(map(type, value)) <= {kind}:
            raise CheckpointError(
                f"{path}: {_KEY}{name} is {value!r:.60}; wanted a list of {kind.__name__}: get the "
                "file again"
            )
    size = len(lists.get("tokens", ()))
    for name in _OF_EACH_TOKEN:
        if size and lists.get(name) and len(lists[name]) != size:
            raise CheckpointError(
                f"{path}: {_KEY}{name} has {len(lists[name])} entries for {size} tokens; wanted as "
                "many: get the file again"
            )


def special_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """Id of a token by GGUF's name of it, such as "bos"; None where there is none.

    An id outside the vocabulary is none.
    """
    has_scores = _KEY + "scores" in metadata and _KEY + "merges" not in metadata
    default = _SENTENCE_PIECE_IDS.get(name) if has_scores else None
    index = metadata.get(f"{_KEY}{name}_token_id", default)
    size = len(metadata.get(_KEY + "tokens") or ())
    return index if type(index) is int and 0 <= index < size else None


def end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: those the file names, and those of known texts."""
    tokens = metadata.get(_KEY + "tokens") or ()
    kinds = metadata.get(_KEY + "token_type") or [_CONTROL] * len(tokens)
    known = [
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if token in _END_TEXTS and kind in (_CONTROL, _USER_DEFINED)
    ]
    if not tokens:  # a file without a vocabulary is used with token ids
        named = [metadata.get(f"{_KEY}{name}_token_id") for name in _END_KEYS]
    else:
        named = [special_id(metadata, name) for name in _END_KEYS]
    return tuple(dict.fromkeys([*(index for index in named if type(index) is int), *known]))
