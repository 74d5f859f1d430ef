"""The tables of docs/scale.md are what the command of that page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import scale_page


def test_the_tables_are_those_that_inspect_makes(tmp_path: Path) -> None:
    """`cd tests && python -m docs.scale_page --write` writes them anew."""
    page = scale_page.PAGE.read_text()
    assert scale_page.written(page, tmp_path) == page


def test_another_figure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_page, "MODELS", ("llama-405b",))
    monkeypatch.setattr(scale_page, "SIZES", (8,))
    page = scale_page.PAGE.read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| 8 | 94.5 | 7.9 |")]
    found = scale_page.written(page.replace(row, row.replace("94.5", "94.6")), tmp_path)
    assert row in found
