"""The tables of docs/coming-from.md, from `pilotfish.config.peers` and `peer_attributes`.

`python tests/docs/peers_page.py --write` writes them anew.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from pilotfish.config.peer_attributes import OF_LLM, OF_OUTPUT, OF_PACKAGE
from pilotfish.config.peers import CACHE, CALL, LOADING, NOTHING, SAMPLING, SPECULATION, Answer

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
LONGEST = 149
"""Characters of a line."""
TABLES: Mapping[str, Mapping[str, Answer | str]] = {
    "SamplingParams": SAMPLING,
    "LLM": LOADING,
    "SpeculativeConfig": SPECULATION,
    "CacheConfig": CACHE,
    "calls": CALL,
    "methods": OF_LLM,
    "outputs": OF_OUTPUT,
    "classes": OF_PACKAGE,
}


def written(page: str) -> str:
    """The page with its tables as they should be."""
    for name, answers in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = before + begin + table(answers) + end + after
    return page


def table(answers: Mapping[str, Answer | str]) -> str:
    """One row a name."""
    rows = "".join(row(name, here(answer)) for name, answer in sorted(answers.items()))
    return "| there | here |\n|---|---|\n" + rows


def row(name: str, said: str) -> str:
    """A row; one that would be too long goes on in the next, which names nothing."""
    width = LONGEST - len(f"| `{name}` |  |")
    first, *others = textwrap.wrap(said, width if len(said) <= width else width * 2 // 3)
    return f"| `{name}` | {first} |\n" + "".join(f"| | {other} |\n" for other in others)


def here(answer: Answer | str) -> str:
    """What a name is here, in words."""
    if isinstance(answer, str):
        return answer
    if answer.ours == NOTHING:
        return f"taken, changes nothing: {answer.says}"
    if answer.ours:
        return f"taken as `{answer.ours}`"
    taken = [
        f"`{value!r}`"
        + "".join(f" is `{name}={ours!r}`" for name, ours in options.items())
        + " with a warning" * (value in answer.warned)
        for value, options in answer.means
        if value is not None
    ]
    return "; ".join([f"taken: {', '.join(taken)}", answer.says] if taken else [answer.says])


if __name__ == "__main__":
    text = written(PAGE.read_text())
    if "--write" in sys.argv:
        PAGE.write_text(text)
    else:
        print(text)
