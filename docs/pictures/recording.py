"""chat.svg: the screen of a terminal in which `pilotfish chat` has answered.

Knows: the command, what is typed, cells of a screen. Does not know: how answers are made.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import pyte
from drawing import LETTER, Drawing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.screens import Terminal

FLAGS = ("--speculative", "ngram", "--show-draft", "--width", "4", "--temperature", "0")
"""A width of its own: the adaptive one follows the clock."""
TYPED = ("Write a haiku about the sea.", "Say it again, word for word.")
SETTINGS = {
    "NO_COLOR": None,
    "TERM": "xterm-256color",
    "PILOTFISH_DEVICE": "cpu",
    "PILOTFISH_BACKEND": "native",  # whose bits are the same on every processor
}
COLUMNS, ROWS = 104, 24
PROMPT = "\x1b[?2004h"
"""What the program asks the terminal for whenever it waits for keys."""
SIZE, LINE, SIDE, TOP = 14, 20, 18, 58
COLORS = {"green": "screen-green", "red": "screen-red struck"}
"""Of a cell's foreground; all else is `screen-ink`."""

Run = tuple[int, str, str]
"""Column of a piece of a line, its text, its classes."""


def record() -> list[list[Run]]:
    """Runs the command in a terminal; its lines, the command before them."""
    with tempfile.TemporaryDirectory() as state:
        program = ("-m", "pilotfish.cli", "chat", "demo", *FLAGS)
        settings = {**SETTINGS, "XDG_STATE_HOME": state}
        with Terminal(*program, rows=ROWS, columns=COLUMNS, **settings) as terminal:
            terminal.wait(lambda t: t.line == ">")
            for text in TYPED:
                num_prompts = terminal.raw.count(PROMPT)
                terminal.type(text + "\r")
                terminal.wait(partial(_asks_again, num_prompts))
            raw = terminal.raw
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.Stream(screen).feed(raw)
    lines = [runs(screen, row) for row in range(screen.cursor.y)]
    return [[(0, "$ " + " ".join(("pilotfish", *program[2:])), "screen-soft")], *lines]


def _asks_again(num_prompts: int, terminal: Terminal) -> bool:
    return terminal.raw.count(PROMPT) > num_prompts and terminal.line == ">"


def runs(screen: pyte.Screen, row: int) -> list[Run]:
    """The pieces of a line that look alike, in order."""
    return list(_runs([screen.buffer[row][column] for column in range(screen.columns)]))


def _runs(cells: Sequence[pyte.screens.Char]) -> Iterator[Run]:
    column = 0
    for kind, alike in groupby(cells, lambda cell: COLORS.get(cell.fg, "screen-ink")):
        text = "".join(cell.data for cell in alike)
        if text.strip():
            yield column, text.rstrip() if kind == "screen-ink" else text, kind
        column += len(text)


def draw(lines: Sequence[Sequence[Run]]) -> str:
    """The picture of a screen."""
    said = "\n".join(text_of(line) for line in lines)
    cell = SIZE * LETTER
    drawing = Drawing(
        2 * SIDE + COLUMNS * cell,
        TOP + len(lines) * LINE + 8,
        "pilotfish chat with n-gram drafts",
        f"A terminal. Accepted drafts are green, rejected ones red and struck out.\n{said}",
        ground="screen",
    )
    drawing.text(
        drawing.width / 2, 26, "pilotfish chat", kind="screen-soft", size=13, anchor="middle"
    )
    for place, line in enumerate(lines):
        for column, text, kind in line:
            drawing.text(
                SIDE + column * cell,
                TOP + place * LINE,
                text.replace(" ", "\N{NO-BREAK SPACE}"),
                kind=f"{kind} mono",
                size=SIZE,
                textLength=f"{len(text) * cell:g}",
            )
    return str(drawing)


def text_of(line: Sequence[Run]) -> str:
    """A line of the screen."""
    text = ""
    for column, piece, _ in line:
        text = text.ljust(column) + piece
    return text
