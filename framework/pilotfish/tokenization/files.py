"""Which files of a directory make its tokenizer, and what to say of those that do not.

Knows: names of files, and which comes first. Does not know: what is in a vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilotfish.errors import CheckpointError
from pilotfish.tokenization.chat_template import DEFAULT
from pilotfish.tokenization.tiktoken_file import TIKTOKEN_FILE
from pilotfish.tokenization.token_texts import TOKENIZER_FILE
from pilotfish.weights import Checkpoint
from pilotfish.weights.anew import get_again, in_cache

_READ_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_UNREAD_FILES = (TIKTOKEN_FILE, "*.tiktoken", "*.model", "merges.txt")
_TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATES = "additional_chat_templates"


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


def what_to_do(file: Path) -> str:
    """The end of a message about a file that cannot be read."""
    packages = [
        package
        for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
        if not _is_installed(module)
    ]
    if file.name == "tokenizer.model" and packages:
        return (
            "; wanted the packages sentencepiece and protobuf to read it with "
            f"({' and '.join(packages)} missing: pip install {' '.join(packages)}), or a "
            f"{TOKENIZER_FILE} beside it"
        )
    if in_cache(file):
        return f"; {get_again(file)}, or pass token ids"
    return "; get the files again, or take them away and pass token ids"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False


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


def templates_in(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a directory, by name; files of their own before those in `config`.

    config: the values of tokenizer_config.json. Raises CheckpointError for a file that cannot be
    read.
    """
    files = {DEFAULT: directory / _TEMPLATE_FILE}
    files.update((file.stem, file) for file in sorted((directory / _TEMPLATES).glob("*.jinja")))
    found: dict[str, str] = {}
    for name, file in files.items():
        if file.is_file():
            try:
                found[name] = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{file}: the template cannot be read: {error}") from error
    return found or named_templates(config.get("chat_template"))


def named_templates(source: Any) -> dict[str, str]:
    """The templates of a config's value: one, or a list of {"name", "template"}."""
    if isinstance(source, str):
        return {DEFAULT: source}
    listed = [one for one in source if isinstance(one, Mapping)] if isinstance(source, list) else []
    return {
        str(one.get("name")): one["template"]
        for one in listed
        if isinstance(one.get("template"), str)
    }
