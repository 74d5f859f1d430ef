"""The table of docs/hooks.md: the old names are gone, and the new ones are there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"


def rows() -> list[tuple[str, str]]:
    """Old and new, name by name."""
    _, _, table = PAGE.read_text().partition("## Names that have moved")
    table, _, _ = table.partition("\n## ")
    cells = [
        [re.findall(r"`([\w.]+)`", cell) for cell in line.split("|")[1:3]]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    return [pair for old, new in cells for pair in zip(old, new, strict=True)]


def is_there(name: str) -> bool:
    """Whether it is a module, or what a module has."""
    module, _, last = f"pilotfish.{name}".rpartition(".")
    try:
        import_module(f"{module}.{last}")
    except ModuleNotFoundError:
        try:
            return hasattr(import_module(module), last)
        except ModuleNotFoundError:
            return False
    return True


@pytest.mark.parametrize(("old", "new"), rows())
def test_names_have_moved_as_the_page_says(old: str, new: str) -> None:
    assert is_there(new)
    news = {new for _, new in rows()}
    assert old in news or not is_there(old)


def test_the_table_is_read() -> None:
    assert len(rows()) > 20
    assert not is_there("layers.no_such")
    assert not is_there("no_such.module")
