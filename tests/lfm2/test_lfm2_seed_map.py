"""docs/seed-map.md against the code: every test it names exists, every symbol it promises too."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from pilotfish_lfm2.cache import ConvStateCache
from pilotfish_lfm2.config import LFM2Config
from pilotfish_lfm2.inputs import LFM2Inputs
from pilotfish_lfm2.model import LFM2Model

ROOT = Path(__file__).parents[2]

CLASSES: dict[str, type] = {
    "ConvStateCache": ConvStateCache,
    "LFM2Config": LFM2Config,
    "LFM2Inputs": LFM2Inputs,
    "LFM2Model": LFM2Model,
}


def section() -> str:
    """The part of the page about this plugin."""
    parts = (ROOT / "docs" / "seed-map.md").read_text().split("\n## ")
    return next(part for part in parts if part.startswith("`max") and "lfm2" in part)


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", section()))
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_every_symbol_with_a_meaning_is_there() -> None:
    parts = re.split(r"\n### `(\w+)`", section())
    assert parts[1::2] == list(CLASSES)
    seen = 0
    for name, table in zip(parts[1::2], parts[2::2], strict=True):
        made = CLASSES[name]
        fields = {field.name for field in attrs.fields(made)} if attrs.has(made) else set()
        for row in table.splitlines():
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            if len(cells) < 3 or "(" in cells[0].replace("()", "") or cells[1].startswith("none"):
                continue
            for symbol in set(re.findall(r"`(\w+)(?:\(\))?`", cells[0])) - {"model_config_cls"}:
                assert symbol in fields or hasattr(made, symbol), symbol
                seen += 1
    assert seen > 30
