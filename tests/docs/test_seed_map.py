"""docs/seed-map.md against the code: every test it names exists, every symbol it promises too."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "seed-map.md").read_text()
SECTIONS = {part.split("`", 2)[1]: part for part in PAGE.split("\n## ")[1:]}
ELSEWHERE = {"model_config_cls"}
"""Symbols of a row that names several and says in words where the other ones are."""


def entries(section: str) -> Iterator[tuple[str, type, str]]:
    """Symbol, what it is here, and the table under its heading."""
    parts = re.split(r"\n### `(\w+)`(?:\n| -> `([\w.]+)`)", section)
    for name, path, table in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        assert path, f"{name}: wanted a heading that says where it is: `{name}` -> `module.{name}`"
        module, _, attribute = path.rpartition(".")
        yield name, getattr(importlib.import_module(module), attribute), table


def promised(table: str) -> Iterator[tuple[str, str]]:
    """Symbol and test of each row that says the symbol is here under its own name."""
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) < 3 or "(" in cells[0].replace("()", "") or cells[1].startswith("none"):
            continue
        for symbol in set(re.findall(r"`(\w+)(?:\(\))?`", cells[0])) - ELSEWHERE:
            yield symbol, cells[2]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_named_test_exists(name: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", SECTIONS[name]))
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {test for test in named if f"def {test}(" not in source} == set()


@pytest.mark.parametrize("name", SECTIONS)
def test_every_symbol_with_a_meaning_is_there(name: str) -> None:
    seen = 0
    for _, made, table in entries(SECTIONS[name]):
        fields = set(getattr(made, "__annotations__", {}))
        if attrs.has(made):
            fields |= {field.name for field in attrs.fields(made)}
        for symbol, test in promised(table):
            assert symbol in fields or hasattr(made, symbol), symbol
            assert test, f"{symbol}: wanted the test that holds it"
            seen += 1
    assert seen


def test_a_symbol_or_test_that_is_not_there_is_found() -> None:
    table = "\n| `nowhere` | field | `test_x` |\n| `gone()` | none: no meaning | |\n"
    assert list(promised(table)) == [("nowhere", "`test_x`")]
