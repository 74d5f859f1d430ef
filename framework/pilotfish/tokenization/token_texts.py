"""Token texts: which text each id of a checkpoint's tokenizer stands for, from its files alone.

Knows: tokenizer.json, tiktoken.model and a GGUF file's list. Does not know: how text is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.config.model import ModelConfig
from pilotfish.errors import CheckpointError
from pilotfish.tokenization.byte_letters import letters_of
from pilotfish.tokenization.tiktoken_file import TIKTOKEN_FILE, read_tiktoken
from pilotfish.weights.formats.gguf import GGUFFile
from pilotfish.weights.json_file import read_json_object

TOKENIZER_FILE = "tokenizer.json"
_SPACE = "\u2581"
_USER_DEFINED, _UNUSED = 4, 5
"""Kinds of GGUF tokens whose text converters change."""


def token_texts(model: ModelConfig) -> dict[int, str] | None:
    """id -> text, added tokens included; None for a checkpoint that has none of these files.

    Spaces are spelled one way, so that texts of both formats compare.
    Raises CheckpointError for a file that is not what its name says.
    """
    path = Path(model.path)
    if model.weight_format == "gguf":
        found = _of_gguf(GGUFFile(path).metadata)
    else:
        found = _of_directory(path)
    if found is None:
        return None
    return {token: text.replace(_SPACE, " ") for token, text in found.items()}


def first_difference(
    ours: Mapping[int, str], theirs: Mapping[int, str]
) -> tuple[int, str, str] | None:
    """The lowest id that both have, with two texts; None where they agree."""
    for token in sorted(ours.keys() & theirs.keys()):
        if ours[token] != theirs[token]:
            return token, ours[token], theirs[token]
    return None


def _of_directory(path: Path) -> dict[int, str] | None:
    if (path / TOKENIZER_FILE).is_file():
        return _of_json(path / TOKENIZER_FILE)
    if (path / TIKTOKEN_FILE).is_file():
        vocabulary = read_tiktoken(path)
        return dict(enumerate(map(letters_of, vocabulary.tokens))) | dict(vocabulary.names)
    return None


def _of_json(file: Path) -> dict[int, str]:
    values = read_json_object(file)
    try:
        vocab: Any = values["model"]["vocab"]
        if isinstance(vocab, Mapping):
            found = {int(token): str(text) for text, token in vocab.items()}
        else:  # with scores, in the order of ids
            found = {token: str(text) for token, (text, _) in enumerate(vocab)}
        found |= {int(one["id"]): str(one["content"]) for one in values.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: {type(error).__name__} where its vocabulary is read ({error}); wanted a "
            "tokenizer.json: get it again"
        ) from error
    return found


def _of_gguf(metadata: Mapping[str, Any]) -> dict[int, str] | None:
    texts = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list):
        return None
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(texts)
    return {
        token: str(text)
        for token, (text, kind) in enumerate(zip(texts, kinds, strict=False))
        if kind not in (_USER_DEFINED, _UNUSED)
    }
