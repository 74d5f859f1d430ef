"""How the pages are written: lines that a terminal holds, links and their anchors, one index.

Knows: Markdown. Does not know: what a page says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LISTS = ("conformance.md",)
"""Pages with tables that are as long as what they list."""
LINE, PROSE, PAGE = 150, 120, 400
"""A line of a page is shorter than LINE, one of prose no longer than PROSE; a page than PAGE."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a page, and whether each is prose: no code, no row of a table."""
    fenced = False
    for line in text.splitlines():
        fence = line.startswith("```")
        yield line, not (fenced or fence or line.startswith(("|", "    ")))
        fenced ^= fence


def too_long(text: str) -> list[str]:
    """Lines that a terminal, or a reader of a diff, would have to scroll for."""
    return [
        line
        for line, is_prose in lines(text)
        if (len(line) > PROSE if is_prose else len(line) >= LINE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_and_its_lines_are_short(page: Path) -> None:
    text = page.read_text()
    assert too_long(text) == []
    assert len(text.splitlines()) <= PAGE or page.name in LISTS


def test_a_line_that_is_too_long_is_found() -> None:
    wide, row, prose = "    " + "x" * 146, "| " + "x " * 73 + "|", "x " * 60 + "x"
    page = f"{wide}\n{row}\n{prose}\n{prose[:120]}\n```\n{wide}\n{prose}\n```\n{prose}\n"
    assert too_long(page) == [wide, prose, wide, prose]
    assert len(row) == 149


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for line, is_prose in lines(text):
        heading = re.match(r"#{1,6} (.*)", line)
        if heading and is_prose:
            title = re.sub(r"\]\([^)]*\)", "", heading[1]).strip().lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            copies = sum(one == slug or one.startswith(f"{slug}-") for one in found)
            found.add(f"{slug}-{copies}" if slug in found else slug)
    return found


def broken_links(page: Path) -> list[str]:
    """Links to files, and to headings, that are not there; those of the web are not tried."""
    text = "\n".join(line for line, _ in lines(page.read_text()) if not line.startswith("```"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in slugs(file.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# It's `here`, now!\n\n```\n# no heading\n```\n## Twice\n## Twice\n"
    )
    page = tmp_path / "page.md"
    right = ("#mine", "other.md", "other.md#its-here-now", "other.md#twice-1", "https://x.y/#z")
    wrong = ("gone.md", "gone.md#a", "other.md#no-heading", "other.md#twice-2", "#theirs")
    page.write_text("# Mine\n" + "\n".join(f"[a]({target})" for target in (*right, *wrong)))
    assert broken_links(page) == list(wrong)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    linked = {(DOCS / name).resolve() for name in re.findall(r"\]\(([^)#\s]+)\)", index)}
    pages = {page.resolve() for page in DOCS.rglob("*.md") if "examples" not in page.parts}
    assert pages - linked == {(DOCS / "index.md").resolve()}
