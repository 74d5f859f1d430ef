"""Near names: turns a misspelt name into "did you mean ...?".

Knows: strings. Does not know: what they name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most like `name`, likest first; upper and lower case count as equal.

    Those far behind the likest are left out: beside "image", "page-size" is no help for "images".
    """
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    word = name.casefold()
    found = difflib.get_close_matches(word, by_folded, n=limit, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, folded, word).ratio() for folded in found]
    return [
        by_folded[folded]
        for folded, alike in zip(found, likeness, strict=True)
        if alike > likeness[0] - 0.15
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean A or B?)"`, or an empty string when nothing is near."""
    near = nearest(name, known)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
