"""life-of-a-request.svg: from a prompt to its text, and the file of each step.

Knows: the steps that docs/life-of-a-request.md tells of. Does not know: the code, but its names.
"""

from __future__ import annotations

from itertools import pairwise

import attrs
from drawing import Drawing

BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW, FRAME = 215, 92, 250, 120, 16
LEFT, TOP, ASIDE = 26, 112, 32
"""ASIDE: how much further to the right the loop's columns are."""
WIDTH = 2 * LEFT + 3 * COLUMN + ASIDE + BOX_WIDTH
HEIGHT = TOP + 4 * ROW + BOX_HEIGHT + 2 * FRAME


@attrs.frozen
class Step:
    """A box: its place in columns and rows, and what is in it. file: of framework/pilotfish."""

    column: int
    row: int
    name: str
    lines: tuple[str, str]
    file: str

    @property
    def x(self) -> float:
        """Of its left edge."""
        return LEFT + self.column * COLUMN + (ASIDE if self.column >= 2 else 0)

    @property
    def y(self) -> float:
        """Of its upper edge."""
        return TOP + self.row * ROW


_PLACED = """
0 0 | Tokenizer     | text, chat and images    | become token ids | tokenization/tokenizer.py
1 0 | Admission     | checks what is asked,    | draws a missing seed | engine/admission.py
2 0 | Scheduler     | who runs in this pass:   | those that decode first | engine/scheduler.py
3 0 | Reserve       | pages for keys and       | values, slots for others | state/manager.py
3 1 | Inputs        | rows of all requests,    | drafts too, packed | models/inputs.py
3 2 | Pass          | through every layer to   | logits; a row by itself | layers/forward_pass.py
3 3 | Sampler       | a token for each row, by | logits, seed and position | sampling/sampler.py
3 4 | Accept        | drafts that equal what   | their rows sampled | speculation/acceptance.py
2 4 | Drafter       | proposes tokens that the | next pass will check | speculation/proposer.py
2 3 | Commit        | rows of taken tokens     | count, others are scratch | state/manager.py
2 2 | Detokenizer   | tokens become text; stop | strings are found | tokenization/detokenizer.py
2 1 | Stop?         | an end token, a stop     | string, a limit | engine/stopping.py
1 1 | Release       | pages and slot go back;  | whole pages stay to share | state/pages.py
0 1 | RequestOutput | the text, its tokens,    | and why it ended | engine/outputs.py
1 2 | Delta         | what a stream gives,     | pass by pass | engine/outputs.py
"""


def _read(line: str) -> Step:
    place, name, first, second, file = (cell.strip() for cell in line.split("|"))
    column, row = map(int, place.split())
    return Step(column, row, name, (first, second), file)


*STEPS, DELTA = [_read(line) for line in _PLACED.strip().splitlines()]
"""In the order in which they come; and what leaves at the detokenizer."""
LOOP = [step for step in STEPS if step.column >= 2]
OF_DRAFTS = ("Accept", "Drafter")
PROMISE = (
    "The text is a function of prompt, parameters and",
    "seed. Batch mates, chunks, pages, preemption and",
    "drafts change no bit of it.",
)


def draw() -> str:
    """The picture."""
    title = "The life of a request"
    told = [*STEPS[:11], DELTA, *STEPS[11:]]
    desc = " ".join(
        f"{place}. {step.name}: {' '.join(step.lines)} ({step.file})."
        for place, step in enumerate(told, 1)
    )
    desc += f" From {LOOP[0].name} to {LOOP[-1].name} is one step, again and again. "
    drawing = Drawing(WIDTH, HEIGHT, title, desc + " ".join(PROMISE))
    drawing.text(LEFT, 34, title, kind="ink bold", size=18)
    drawing.text(LEFT, 54, "Files are under framework/pilotfish/.", kind="soft")
    _frame(drawing)
    for before, after in [*pairwise(STEPS), (LOOP[-1], LOOP[0]), (LOOP[-2], DELTA)]:
        _arrow(drawing, before, after)
    first, last, stop = STEPS[0], STEPS[-1], LOOP[-1]
    for step, word, y in ((first, "prompt", first.y - 30), (last, "text", last.y + BOX_HEIGHT)):
        x = step.x + BOX_WIDTH / 2
        drawing.line((x, y), (x, y + 27), arrow=True)
        drawing.text(x + 10, y + 14, word, kind="soft", size=12)
    drawing.text(stop.x + BOX_WIDTH / 2 + 10, stop.y - 10, "no", kind="soft", size=12)
    x = stop.x - FRAME - 16
    drawing.text(x, stop.y + 38, "yes", kind="soft", size=12, anchor="middle", room=30)
    for step in (*STEPS, DELTA):
        _box(drawing, step)
    _state(drawing, TOP + 3 * ROW + 18)
    for place, line in enumerate(PROMISE):
        y = TOP + 4 * ROW + 44 + 21 * place
        drawing.text(LEFT, y, line, size=14, room=2 * COLUMN - 35)
    return str(drawing)


def _frame(drawing: Drawing) -> None:
    x, width = LOOP[0].x, COLUMN + BOX_WIDTH
    y, height = TOP - 38, HEIGHT - TOP + 38 - FRAME
    drawing.box(x - FRAME, y, width + 2 * FRAME, height, kind="paper edge", radius=8)
    said = "one step, of all requests that run, again and again"
    drawing.text(x, TOP - 14, said, kind="soft", room=width)


def _box(drawing: Drawing, step: Step) -> None:
    drawing.box(step.x, step.y, BOX_WIDTH, BOX_HEIGHT, kind="box edge")
    color, x, room = "green" if step.name in OF_DRAFTS else "blue", step.x + 10, BOX_WIDTH - 12
    drawing.text(x, step.y + 24, step.name, kind=f"{color} bold", size=15, room=room)
    for place, line in enumerate(step.lines):
        drawing.text(x, step.y + 44 + 17 * place, line, size=12, room=room)
    drawing.text(x, step.y + 81, step.file, kind="soft mono", size=11, room=room)


def _arrow(drawing: Drawing, before: Step, after: Step) -> None:
    """Between boxes that are neighbours in a row or a column."""
    right, down = after.column - before.column, after.row - before.row
    assert abs(right) + abs(down) == 1, f"{before.name} and {after.name} are no neighbours"
    half_x, half_y = right * BOX_WIDTH / 2, down * BOX_HEIGHT / 2
    begin, end = [
        (step.x + BOX_WIDTH / 2 + side * half_x, step.y + BOX_HEIGHT / 2 + side * half_y)
        for step, side in ((before, 1), (after, -1))
    ]
    drawing.line(begin, (end[0] - 3 * right, end[1] - 3 * down), arrow=True)


def _state(drawing: Drawing, y: float) -> None:
    """Pages and slot of one request, from this height on."""
    drawing.text(LEFT, y, "State of one request", kind="ink bold", size=14)
    cell, page_size, num_committed, num_scheduled = 15, 8, 13, 4
    for row in range(3 * page_size):
        x = LEFT + row * cell + row // page_size * 10
        is_new = row >= num_committed
        is_free = row >= num_committed + num_scheduled
        kind = "box edge" if is_free else "green" if is_new else "blue"
        drawing.box(x, y + 14, cell - 2, 22, kind=kind, radius=2)
    drawing.text(LEFT + 400, y + 30, "pages", kind="soft", size=12)
    kinds = {"blue": "committed", "green": "of this pass", "box edge": "free"}
    for place, (kind, word) in enumerate(kinds.items()):
        x = LEFT + 120 * place
        drawing.box(x, y + 48, 12, 12, kind=kind, radius=2)
        drawing.text(x + 18, y + 58, word, kind="soft", size=12)
    drawing.box(LEFT, y + 74, 384, 22, kind="box edge", radius=2)
    drawing.text(LEFT + 8, y + 89, "last columns of a convolution, say", kind="soft", size=12)
    drawing.text(LEFT + 400, y + 89, "slot", kind="soft", size=12)
