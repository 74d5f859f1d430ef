"""How text is cut before byte-level merging: by the name a GGUF file gives it, or by a plugin.

Knows: split patterns of common vocabularies. Does not know: vocabularies, or any architecture:
plugins bring theirs in `ArchitectureSpec` (`gguf_pretokenizers`, `tiktoken`). No torch here.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class PreTokenizer:
    """What `tokenizer.ggml.pre` stands for.

    pattern: regular expression whose matches, and what lies between them, are merged separately;
        None is the expression that byte-level vocabularies began with.
    add_bos: whether a text begins with the BOS token when the file does not say.
    """

    pattern: str | None = None
    add_bos: bool = False


@attrs.frozen(kw_only=True)
class TiktokenRules:
    """What a `tiktoken.model` leaves to the code beside it.

    pattern: regular expression whose matches are merged separately; it must match any text.
    num_reserved: ids behind those of the file that are tokens of their own, named or not.
    reserved_name: text of one that tokenizer_config.json does not name; `{id}` is its id.
    """

    pattern: str
    num_reserved: int = 0
    reserved_name: str = "<|reserved_token_{id}|>"


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"


def contraction_split(digits: str) -> str:
    """Contractions, letters with one sign before them, runs of digits, signs, white space.

    digits: expression for one run of digits, e.g. `\\p{N}{1,3}`.
    """
    return "|".join(
        (_CONTRACTION, _BEFORE + r"\p{L}+", digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", _SPACES)
    )


def case_split(digits: str, suffix: str = "") -> str:
    """Words cut where lower case turns to upper case, runs of digits, signs, white space.

    suffix: expression that may follow a word, e.g. a contraction.
    """
    return "|".join(
        (
            f"{_BEFORE}{_UPPER}*{_LOWER}+{suffix}",
            f"{_BEFORE}{_UPPER}+{_LOWER}*{suffix}",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        )
    )


PRE_TOKENIZERS = {
    "default": PreTokenizer(),
    "gpt-2": PreTokenizer(),
    # The vocabulary was trained with every digit cut off first. That matters only after two or
    # more white spaces; files of this name are read as transformers reads them, without the cut.
    "smollm": PreTokenizer(),
    "qwen2": PreTokenizer(contraction_split(r"\p{N}")),
    "tekken": PreTokenizer(case_split(r"\p{N}"), add_bos=True),
    "gpt-4o": PreTokenizer(case_split(r"\p{N}{1,3}", f"{_CONTRACTION}?")),
}
"""The names that the core knows."""
