"""benchmarks.svg: how many times better than its peers Pilotfish is, from docs/benchmarks/cpu.md.

Knows: the tables of that page. Does not know: how anything was measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

import attrs
from drawing import Drawing

COLUMNS = ("what", "ours", "theirs", "peer", "ratio", "unit", "tokens equal")
OURSELVES = ("pilotfish", "imports", "bound")
"""Beginnings of peers that are no other system."""
WIDTH, LEFT, BARS, RIGHT = 960, 24, 390, 888
"""Bars lie between BARS and RIGHT."""
ROW, HEADING, TOP, FOOT = 24, 46, 70, 66


@attrs.frozen
class Row:
    """What was measured beside which system. ratios: of the tables of a section, first to last."""

    what: str
    peer: str
    ratios: tuple[float, ...]


def sections(page: str) -> dict[str, list[Row]]:
    """Of each part of the page that compares with another system: its heading, its rows.

    Raises ValueError for a ratio that is no number, and for a page without such tables.
    """
    found = {}
    for part in page.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        ratios: dict[tuple[str, str], list[float]] = {}
        for what, peer, ratio in figures(body):
            ratios.setdefault((what, peer), []).append(ratio)
        if ratios:
            rows = [Row(what, peer, tuple(values)) for (what, peer), values in ratios.items()]
            is_named = rows[0].peer in heading
            found[heading if is_named else f"{heading}, beside {rows[0].peer}"] = rows
    if not found:
        raise ValueError(f"no table beside another system; wanted one with {' | '.join(COLUMNS)}")
    return found


def figures(body: str) -> Iterator[tuple[str, str, float]]:
    """What, peer and ratio of each row of a table of figures, where the peer is another system."""
    head = re.escape("| " + " | ".join(COLUMNS) + " |\n") + r"\|[-:| ]+\|\n"
    for match in re.finditer(rf"^{head}((?:\|.*\|\n?)*)", body, re.MULTILINE):
        for line in match[1].splitlines():
            what, _, _, peer, ratio, *_ = (cell.strip() for cell in line.split("|")[1:-1])
            if not peer.startswith(OURSELVES):
                yield what, peer, float(ratio)


def labels(rows: Sequence[Row]) -> Iterator[str]:
    """What was measured; of the same beside another peer than in the row before, the peer."""
    for before, row in zip([None, *rows], rows, strict=False):
        is_same = before is not None and before.what == row.what
        yield f"the same, beside {row.peer}" if is_same else row.what


@attrs.frozen
class Scale:
    """Ratios to places, a doubling everywhere as wide. low, high: exponents of 2."""

    low: int
    high: int

    @classmethod
    def over(cls, rows: Iterable[Row]) -> Scale:
        """One that has room for all, and for 1."""
        logs = [math.log2(ratio) for row in rows for ratio in row.ratios]
        return cls(min(0, math.floor(min(logs))), max(1, math.ceil(max(logs))))

    def x(self, ratio: float) -> float:
        """Where a ratio is."""
        share = (math.log2(ratio) - self.low) / (self.high - self.low)
        return BARS + (RIGHT - BARS) * share


def draw(page: str) -> str:
    """The picture of a page."""
    found = sections(page)
    scale = Scale.over(row for rows in found.values() for row in rows)
    height = sum(HEADING + ROW * len(rows) for rows in found.values())
    title = "Pilotfish beside other systems, on a CPU"
    desc = "Ratios, above 1 where Pilotfish is better. " + " ".join(
        f"{heading}: " + "; ".join(map(_told, labels(rows), rows)) + "."
        for heading, rows in found.items()
    )
    drawing = Drawing(WIDTH, TOP + height + FOOT, title, desc)
    drawing.text(LEFT, 34, title, kind="ink bold", size=18)
    said = "How many times better: speed, time, memory. Figures of docs/benchmarks/cpu.md."
    drawing.text(LEFT, 54, said, kind="soft")
    y = float(TOP)
    for heading, rows in found.items():
        drawing.text(LEFT, y + 30, heading, kind="ink bold", size=14)
        y += HEADING
        _grid(drawing, scale, y - 4, y + ROW * len(rows))
        for label, row in zip(labels(rows), rows, strict=True):
            drawing.text(LEFT + 8, y + 15, label, size=12, room=BARS - LEFT - 8)
            _bar(drawing, scale, row, y)
            y += ROW
    for exponent in range(scale.low, scale.high + 1):
        word = f"{2**exponent} x" if exponent >= 0 else f"1/{2**-exponent} x"
        x = scale.x(2.0**exponent)
        drawing.text(x, y + 18, word, kind="soft", size=12, anchor="middle", room=60)
    _tick(drawing, LEFT + 4, y + 35)
    said = "the same in the section's further tables: other instruction sets, number types, files"
    drawing.text(LEFT + 16, y + 48, said, kind="soft", size=12)
    return str(drawing)


def _told(label: str, row: Row) -> str:
    first, *others = (f"{ratio:.2f}" for ratio in row.ratios)
    return f"{label} {first}" + (f" (also {', '.join(others)})" if others else "")


def _grid(drawing: Drawing, scale: Scale, top: float, bottom: float) -> None:
    for exponent in range(scale.low, scale.high + 1):
        x = scale.x(2.0**exponent)
        drawing.line((x, top), (x, bottom), kind="edge" if exponent else "line")


def _bar(drawing: Drawing, scale: Scale, row: Row, y: float) -> None:
    ratio, *others = row.ratios
    one, end = scale.x(1), scale.x(ratio)
    color = "blue" if ratio >= 1 else "orange"
    drawing.box(min(one, end), y + 5, max(abs(end - one), 1), 12, kind=color, radius=2)
    for other in others:
        _tick(drawing, scale.x(other), y + 2)
    drawing.text(WIDTH - 16, y + 15, f"{ratio:.2f}", kind=f"{color} bold", size=12, anchor="end")


def _tick(drawing: Drawing, x: float, y: float) -> None:
    drawing.box(x - 2.5, y, 5, 18, kind="paper", radius=0)
    drawing.box(x - 1, y, 2, 18, kind="ink", radius=0)
