"""How the text of a published `tiktoken.model` is cut before its parts are merged.

Knows: the pattern, and that 256 ids follow the ranks. Does not know: the file, or how it is read.
"""

from __future__ import annotations

from pilotfish.weights.pretokenizer import TiktokenRules

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

TIKTOKEN = TiktokenRules(
    pattern="|".join(
        (
            r"[\p{Han}]+",
            f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTION}",
            f"{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    num_reserved=256,
)
"""Runs of Han are pieces of their own; other words are cut where lower case turns to upper case."""
