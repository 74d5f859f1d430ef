"""The rows of a benchmark as people read them, each when it is measured.

Knows: rows and the terminal's width. Does not know: how a row is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilotfish.bench.report import BenchReport, BenchRow, Verdict

PEERS = {
    "transformers": "its generate, on the same weights and in the same dtype",
    "llama.cpp": "the .gguf file itself, through llama-cpp-python",
    "llama.cpp with prompt lookup": "the same, with its own prompt lookup",
    "pilotfish fastest": "our own engine with --arithmetic fastest: what invariance costs",
    "pilotfish greedy": "our own engine at temperature 0: what drawing tokens costs",
    "pilotfish cold": "our own engine without what it remembers of the prompt",
    "pilotfish plain": "our own engine without the drafter",
}
"""What "theirs" is. A peer that is not there is a bound, and its name says which."""

_WIDTHS = (15, 15, 24)
"""Of ours, theirs and the ratio."""
_STYLES: dict[Verdict, str] = {
    "better": "green",
    "worse": "red",
    "level": "",
    "other tokens": "yellow",
}


class BenchTable:
    """Prints rows on a stream as they come; `end` says what they come to.

    width: of the lines; None takes the terminal's.
    """

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        self._console = Console(file=stream, width=width, highlight=False)
        self._peer: str | None = None
        if not self._console.is_terminal and width is None:
            self._console.width = 120
        self._rows: list[BenchRow] = []

    def show(self, row: BenchRow) -> None:
        """Prints one row, after a heading where theirs is another than before."""
        if row.peer != self._peer:
            self._peer = row.peer
            says = PEERS.get(row.peer, "a bound, and no system")
            self._console.print()
            self._console.print(Text.assemble((f"theirs: {row.peer}", "bold"), f", {says}"))
            self._line("", Text("ours"), Text("theirs"), Text("ours is"), style="dim")
        self._rows.append(row)
        arrow = "↑" if row.higher_is_better else "↓"
        self._line(
            f"  {row.name}, {row.unit} {arrow}",
            Text(_figure(row.ours, row.ours_spread)),
            Text(_figure(row.theirs, row.theirs_spread)),
            Text(ratio(row), style=_STYLES[row.verdict]),
        )
        if isinstance(row.tokens_equal, str):
            self._console.print(Text(f"      * {row.tokens_equal}", style="dim"))

    def end(self, report: BenchReport) -> None:
        """The verdict, how to read it, and the machine."""
        self._console.print()
        self._console.print(Text(verdict(self._rows), style="bold"))
        self._console.print(
            Text(
                "↑ higher is better, ↓ lower is better; ± half of what lies between the extremes "
                "of the rounds; level: within the spread of both",
                style="dim",
            )
        )
        if not any(row.noise for row in self._rows):
            self._console.print("one round: no spread is known, and small differences mean nothing")
        machine = ", ".join(f"{key} {value}" for key, value in report.machine().items())
        self._console.print(Text(f"machine: {machine}\nsample: {report.sample!r}", style="dim"))

    def _line(self, name: str, *cells: Text, style: str = "") -> None:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        for width in _WIDTHS:
            line.add_column(justify="right", width=width, no_wrap=True)
        line.add_row(name, *cells, style=style)
        self._console.print(line)


def ratio(row: BenchRow) -> str:
    """How many times better ours is; what else is to be known of it stands with it."""
    times = f"{row.ratio:.2f}x"
    if row.tokens_equal is False:
        return f"{times}, OTHER TOKENS"
    star = "*" if isinstance(row.tokens_equal, str) else ""
    return f"{times}{star} {row.verdict}"


def verdict(rows: Iterable[BenchRow]) -> str:
    """What all rows come to, in one line."""
    counts = Counter(row.verdict for row in rows)
    said = [f"{word} in {counts[word]}" for word in ("better", "level", "worse") if counts[word]]
    text = f"of {counts.total()} figures ours is {', '.join(said) or 'compared in none'}"
    if counts["other tokens"]:
        text += f"; {counts['other tokens']} compare other tokens, and so nothing"
    return text


def _figure(value: float, spread: float | None) -> str:
    return f"{value:.4g}" if spread is None else f"{value:.4g} ±{spread:.0%}"
