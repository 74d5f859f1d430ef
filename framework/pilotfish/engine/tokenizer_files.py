"""Which files of a directory make its tokenizer, and what to say of those that do not.

Knows: names of files, and which comes first. Does not know: what is in a vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError
from pilotfish.weights import Checkpoint
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.tiktoken_file import CONFIG_FILE, TIKTOKEN_FILE
from pilotfish.weights.token_texts import TOKENIZER_FILE

_READ_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_UNREAD_FILES = (TIKTOKEN_FILE, "*.tiktoken", "*.model", "merges.txt")
_TEMPLATE_FILE = "chat_template.jinja"


def describe_tokenizer(checkpoint: Checkpoint) -> str:
    """Where the tokenizer comes from, or why there is none. Looks for files and reads none."""
    if checkpoint.gguf is not None:
        has_one = checkpoint.gguf.metadata.get("tokenizer.ggml.tokens")
        return "the GGUF file's" if has_one else "none"
    if checkpoint.tiktoken is not None and is_tiktoken(checkpoint.path):
        return TIKTOKEN_FILE
    name = file_read(checkpoint.path)
    if name is not None:
        return name
    unread = unread_file(checkpoint.path)
    return "none" if unread is None else f"none that is read: {unread}"


def file_read(directory: Path) -> str | None:
    """The file that transformers reads of a directory."""
    return next((name for name in _READ_FILES if (directory / name).is_file()), None)


def what_to_do(name: str) -> str:
    """The end of a message about a file that cannot be read."""
    if name == "tokenizer.model" and importlib.util.find_spec("sentencepiece") is None:
        return (
            f"; wanted the package sentencepiece to read it with, or a {TOKENIZER_FILE} beside it"
        )
    return "; get the files again, or take them away and pass token ids"


def is_tiktoken(directory: Path) -> bool:
    """Whether tiktoken.model is what is to be read; tokenizer.json comes first."""
    return (directory / TIKTOKEN_FILE).is_file() and not (directory / TOKENIZER_FILE).is_file()


def unread_file(directory: Path) -> str | None:
    """What to say of a vocabulary that is there, and not one that is read."""
    found = [file for form in _UNREAD_FILES for file in sorted(directory.glob(form))]
    if not found:
        return None
    why = (
        "the architecture's plugin does not say how its text is cut (ArchitectureSpec.tiktoken)"
        if found[0].name == TIKTOKEN_FILE
        else f"wanted one of {', '.join(_READ_FILES)}"
    )
    return f"{found[0]} was found, and {why}; put a {TOKENIZER_FILE} beside it, or pass token ids"


def reader_of(directory: Path) -> Any:
    """The class of transformers that reads a directory.

    Where tokenizer_config.json asks for code beside it, tokenizer.json says all without that code.
    """
    import transformers

    file = directory / CONFIG_FILE
    config = read_json_object(file) if file.is_file() else {}
    has_class = hasattr(transformers, str(config.get("tokenizer_class")))
    if config.get("auto_map") and not has_class and (directory / TOKENIZER_FILE).is_file():
        return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def template_in(directory: Path, config: Mapping[str, Any]) -> str | None:
    """As `_template_of`, from the files: one of its own comes before tokenizer_config.json's."""
    file = directory / _TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: the template cannot be read: {error}") from error
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [one for one in source if isinstance(one, Mapping) and one.get("name") == "default"]
        source = named[0].get("template") if named else None
    return source if isinstance(source, str) else None
