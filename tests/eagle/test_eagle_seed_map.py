"""docs/seed-map.md against the code: every test it names exists, every symbol it promises too."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from pilotfish_eagle.inputs import PersistentInputBuffers, UnifiedEagleLlama3Inputs
from pilotfish_eagle.unified import UnifiedEagleLlama3Config, UnifiedEagleLlama3Model

ROOT = Path(__file__).parents[2]
CLASSES: dict[str, type] = {
    "PersistentInputBuffers": PersistentInputBuffers,
    "UnifiedEagleLlama3Config": UnifiedEagleLlama3Config,
    "UnifiedEagleLlama3Inputs": UnifiedEagleLlama3Inputs,
    "UnifiedEagleLlama3Model": UnifiedEagleLlama3Model,
}


def section() -> str:
    """The part of the page about this plugin."""
    parts = (ROOT / "docs" / "seed-map.md").read_text().split("\n## ")
    return next(part for part in parts if "unified_eagle_llama3`" in part.splitlines()[0])


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", section()))
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 6
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_every_symbol_with_a_meaning_is_there() -> None:
    parts = re.split(r"\n### `(\w+)`", section())
    assert set(parts[1::2]) == set(CLASSES)
    seen = 0
    for name, table in zip(parts[1::2], parts[2::2], strict=True):
        made = CLASSES[name]
        fields = {field.name for field in attrs.fields(made)} if attrs.has(made) else set()
        for row in table.splitlines():
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            if len(cells) < 3 or "(" in cells[0].replace("()", "") or cells[1].startswith("none"):
                continue
            for symbol in re.findall(r"`(\w+)(?:\(\))?`", cells[0]):
                assert symbol in fields or hasattr(made, symbol), symbol
                seen += 1
    assert seen > 25
