"""Near names: turns a misspelt name into "did you mean ...?".

Knows: strings. Does not know: what they name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_BEGINNING = 3
"""Letters of a name that somebody has begun, and not misspelt."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most like `name`, likest first; upper and lower case count as equal.

    Those that it is the beginning of come alone; else those far behind the likest are left out:
    beside "image", "page-size" is no help for "images".
    """
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    word = name.casefold()
    begun = [known for folded, known in by_folded.items() if folded.startswith(word)]
    if len(word.strip("-/_")) >= _BEGINNING and 0 < len(begun) <= limit:
        return begun
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


_ENDING = re.compile(r"(For[A-Z]\w*|LMHeadModel|DraftModel|Speculator|Model)$")
_BARE = ("Model", "LMHeadModel")
"""Endings of a network without a task: the same model, saved by another class."""


def did_you_mean_model(name: str, known: Iterable[str]) -> str:
    """As `did_you_mean`, for names of architectures: only a slip of the pen, never another model.

    Names of one family are alike in most letters and stand for other networks: a number, or a word
    more, is no slip.
    """
    near = [one for one in known if one != name and _is_slip(name, one)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _is_slip(name: str, known: str) -> bool:
    (stem, ending), (known_stem, known_ending) = _parts(name), _parts(known)
    same_task = ending in _BARE or _one_letter_off(ending.casefold(), known_ending.casefold())
    return same_task and _one_letter_off(stem.casefold(), known_stem.casefold())


def _parts(name: str) -> tuple[str, str]:
    found = _ENDING.search(name)
    at = len(name) if found is None else found.start()
    return name[:at], name[at:]


def _one_letter_off(a: str, b: str) -> bool:
    """Equal, or two neighbours are swapped, or one of them has a letter more; digits are equal."""
    if a == b:
        return True
    if re.sub(r"\D", "", a) != re.sub(r"\D", "", b):
        return False
    if len(a) == len(b):
        odd = [at for at, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        return len(odd) == 2 and odd[1] == odd[0] + 1 and a[odd[0]] == b[odd[1]]
    short, long = sorted((a, b), key=len)
    return any(long[:at] + long[at + 1 :] == short for at in range(len(long)))
