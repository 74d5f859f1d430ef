"""docs/seed-map.md against the code: every test it names exists, every symbol it promises too."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pilotfish_dflash.model import DFlashLlama3Model
from pilotfish_dflash.network import DFlashLlama3

ROOT = Path(__file__).parents[2]
CLASSES: dict[str, type] = {"DFlashLlama3": DFlashLlama3, "DFlashLlama3Model": DFlashLlama3Model}
ARGUMENTS = {
    "forward_block": ("input_embeds", "kv", "input_row_offsets"),
    "materialize_kv": ("ctx_hidden", "input_row_offsets", "kv"),
    "project_target_hidden": ("target_hs_concat",),
}


def section() -> str:
    """The part of the page about this plugin."""
    parts = (ROOT / "docs" / "seed-map.md").read_text().split("\n## ")
    return next(part for part in parts if "dflash_llama3`" in part.splitlines()[0])


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", section()))
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 5
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_every_symbol_with_a_meaning_is_there() -> None:
    parts = re.split(r"\n### `(\w+)`", section())
    assert set(parts[1::2]) == set(CLASSES)
    seen = 0
    for name, table in zip(parts[1::2], parts[2::2], strict=True):
        for row in table.splitlines():
            symbol = re.match(r"\| `(\w+)\(\)` \|", row)
            if symbol:
                assert callable(getattr(CLASSES[name], symbol.group(1)))
                seen += 1
    assert seen == 4


def test_arguments_are_those_of_the_page() -> None:
    for name, wanted in ARGUMENTS.items():
        found = tuple(inspect.signature(getattr(DFlashLlama3, name)).parameters)
        assert found[1 : 1 + len(wanted)] == wanted
    assert "num_context_features" in inspect.signature(DFlashLlama3).parameters
