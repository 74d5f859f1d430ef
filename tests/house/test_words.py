"""Names of things are the field's: those that were ours alone are not taken again."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("framework", "plugins", "tests", "benchmarks", "examples", "docs/examples")
OLD_WORDS = {
    "AttachedCache": "SlotCache",
    "AttachedGroup": "SlotCaches",
    "DeferredTensor": "a tensor, packed when it is loaded",
    "Fold": "GQAPacking",
    "HIDDEN": "MASK_VALUE",
    "LayerSight": "LayerMaskSpec",
    "RequestBook": "RequestBlocks",
    "Sight": "MaskSpec",
    "StateCache": "SlotCache",
    "Together": "DecodeLayout",
    "draft_laws": "draft_probs",
    "keeps_laws": "keeps_probs",
    "law": "probs",
    "laws": "probs",
    "make_fold": "pack_gqa",
    "make_together": "lay_out_decode",
    "max_width": "max_draft_tokens",
    "paged_leaf": "paged_cache_name",
    "recycled": "prev_hidden_states",
    "recycles_normed": "feeds_normed_states",
    "residual_law": "residual_probs",
    "sight": "mask_spec",
    "sights": "mask_specs",
    "taps": "aux_hidden_state_layers",
    "takes_deferred": "nothing: weights are packed when they are loaded",
}
"""As names of Python, not as words of prose; and what is said in their place."""

EMPTY_PHRASES = ("As the base.", "Knows no speed")
"""Of docstrings: they tell a reader nothing."""


def old_words(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each name of the list."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in OLD_WORDS:
            yield token.start[0], token.string


def test_no_name_is_one_of_the_old() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}; wanted {OLD_WORDS[name]}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in old_words(path.read_text())
    ]
    assert found == []


def test_an_old_word_is_seen_as_a_name_and_not_in_prose() -> None:
    source = 'def f(laws):\n    """The laws of the draft."""\n    return laws.sight  # a law\n'
    assert list(old_words(source)) == [(1, "laws"), (3, "laws"), (3, "sight")]


def empty_phrases(source: str) -> list[str]:
    return [one for one in EMPTY_PHRASES if f'"""{one}' in source or f" {one}" in source]


def test_no_docstring_says_nothing() -> None:
    found = [
        (str(path.relative_to(ROOT)), phrase)
        for folder in ("framework", "plugins")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for phrase in empty_phrases(path.read_text())
    ]
    assert found == []
    assert empty_phrases('def f():\n    """As the base."""\n') == ["As the base."]
