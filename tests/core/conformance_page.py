"""The tables of docs/conformance.md; `cd tests && python -m core.conformance_page` writes them."""

from __future__ import annotations

from pathlib import Path

import core.planted_drafts
import core.planted_maths
import core.planted_state
import core.planted_texts  # noqa: F401 - listing the bugs is what these four do
from core.planted_bugs import BUGS
from pilotfish.testing import PROMISES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def promises() -> str:
    """The promises and what they say."""
    lines = [f"| {promise.name} | {promise.says} |" for promise in PROMISES]
    return "\n".join(["| promise | |", "|---|---|", *lines])


def table() -> str:
    """The planted bugs, in the order of the pitfalls; those without a number last."""
    lines = ["| no. | planted bug | promise that notices it |", "|---|---|---|"]
    for one in sorted(BUGS, key=lambda one: one.number or 99):
        lines.append(f"| {one.number or ''} | {one.what} | {one.promise} |".replace("|  |", "| |"))
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its two tables as they should be."""
    for name, text in (("promises", promises()), ("table of planted bugs", table())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
