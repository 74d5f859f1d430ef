"""The tables of docs/conformance.md.

`cd tests && python -m support.conformance_page` writes them.
"""

from __future__ import annotations

from pathlib import Path

import support.planted_caches
import support.planted_drafts
import support.planted_images
import support.planted_maths
import support.planted_state
import support.planted_texts  # noqa: F401 - listing the bugs is what these six do
from pilotfish.testing import PROMISES
from support.planted_bugs import BUGS

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


def elsewhere() -> str:
    """Bugs of the step and of one format of drafts: planted in tests of their own."""
    from dflash.test_dflash_mutants import MUTANTS as DFLASH
    from eagle.test_eagle_mutants import MUTANTS as EAGLE
    from lfm2.test_lfm2_mutants import MUTANTS as LFM2
    from speculation.test_speculation_mutants import MUTANTS as STEP

    lines = ["| no. | planted bug | tests |", "|---|---|---|"]
    listed = {
        "tests/speculation": STEP,
        "tests/eagle": EAGLE,
        "tests/dflash": DFLASH,
        "tests/lfm2": LFM2,
    }
    for folder, mutants in listed.items():
        for name in mutants:
            words = name.replace("_", " ")
            number, _, what = words.partition(" ")
            cells = (number, what) if number.isdecimal() else (" ", words)
            lines.append(f"| {' | '.join(cells)} | {folder} |")
    return "\n".join(line.replace("|   |", "| |") for line in lines)


def written(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {
        "promises": promises(),
        "table of planted bugs": table(),
        "bugs planted elsewhere": elsewhere(),
    }
    for name, text in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
