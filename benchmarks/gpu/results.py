"""Results: one JSON file that every part extends and that is written after every figure.

Knows: the file. Does not know: what the figures mean.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import attrs


@attrs.define
class Results:
    """path: of the JSON file; what stands in it is kept, a part that runs again replaces its own.

    parts: {part: {"date": ..., "rows": [...], "error": ... or absent}}.
    """

    path: Path
    machine: dict[str, Any]
    parts: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    @classmethod
    def open(cls, path: Path, machine: dict[str, Any]) -> Results:
        """Parts that were measured on the same machine are kept; those of another one are not."""
        results = cls(path, machine)
        if path.exists():
            known = json.loads(path.read_text())
            if known["machine"] == machine:
                results.parts = known["parts"]
        return results

    def begin(self, part: str) -> None:
        """Forgets what the part found before."""
        self.parts[part] = {"date": time.strftime("%Y-%m-%d"), "rows": []}
        self.save()

    def add(self, part: str, **row: Any) -> None:
        """One figure, shown and saved at once."""
        self.parts[part]["rows"].append(row)
        shown = ", ".join(f"{key} {_short(value)}" for key, value in row.items())
        print(f"[{part}] {shown}", flush=True)
        self.save()

    def fail(self, part: str, error: str) -> None:
        """What ended the part early; its rows stay."""
        self.parts[part]["error"] = error
        print(f"[{part}] FAILED: {error}", flush=True)
        self.save()

    def value(self, part: str, name: str) -> float | None:
        """The figure of that name in another part; None when it was not measured."""
        rows = self.parts.get(part, {}).get("rows", [])
        return next((row["value"] for row in rows if row["name"] == name), None)

    def save(self) -> None:
        """Writes the whole file beside the old one and puts it in its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"machine": self.machine, "parts": self.parts}, indent=1))
        new.replace(self.path)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
