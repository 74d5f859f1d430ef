"""ranks.svg: what of a block two ranks share, and where they speak to one another.

Knows: the order of a pre-norm block. Does not know: the code, but its names.
"""

from __future__ import annotations

from drawing import Drawing

WIDTH, LEFT, GAP = 900, 24, 24
LANE = (WIDTH - 2 * LEFT - GAP) / 2
BOX, STEP, TOP = 44, 62, 92

STEPS = (
    ("rows of the vocabulary", "embed_tokens", "each has half of the table", "split"),
    ("all gather", "", "a row comes from the rank that has it", "says"),
    ("norm", "attention_norm", "every rank computes the same", "whole"),
    ("query, key and value heads", "attention.qkv", "half of the heads, and their pages", "split"),
    ("slices of the output", "attention.out", "partial sums, in float32", "split"),
    ("all gather", "", "each adds all slices in the order of one tree", "says"),
    ("norm", "mlp_norm", "every rank computes the same", "whole"),
    ("columns of gate and up", "mlp.gate_up", "half of them; or half of the experts", "split"),
    ("slices of down", "mlp.down", "partial sums, in float32", "split"),
    ("all gather", "", "each adds all slices in the order of one tree", "says"),
    ("norm", "norm", "every rank computes the same", "whole"),
    ("rows of the head", "lm_head", "half of the logits", "split"),
    ("gather", "", "rank 0 has all logits, and samples once", "says"),
)
"""What is done, the layer's name, more of it, and whether it is split, whole, or between ranks."""


def draw() -> str:
    """The picture."""
    height = TOP + len(STEPS) * STEP + 16
    title = "What two ranks share"
    desc = "; ".join(f"{name}: {more}" for name, _, more, _ in STEPS)
    picture = Drawing(WIDTH, height, title, desc)
    picture.text(LEFT, 34, title, kind="ink bold", size=18)
    picture.text(LEFT, 56, "from a token's row to its logits, one block between", kind="soft")
    for lane, name in enumerate(("rank 0: scheduler, sampler", "rank 1")):
        picture.text(_x(lane), TOP - 12, name, kind="ink bold")
    for number, step in enumerate(STEPS):
        y = TOP + number * STEP
        if step[3] == "says":
            _between(picture, y, step[0], step[2])
            continue
        for lane in (0, 1):
            _layer(picture, lane, y, step)
    return str(picture)


def _x(lane: int) -> float:
    return LEFT + lane * (LANE + GAP)


def _layer(picture: Drawing, lane: int, y: float, step: tuple[str, str, str, str]) -> None:
    name, layer, more, how = step
    x = _x(lane)
    picture.box(x, y, LANE, BOX, kind="box edge")
    if how == "split":  # a rank's part, beside the other's
        picture.box(x + lane * LANE / 2, y + BOX - 5, LANE / 2, 5, kind="blue", radius=2)
    else:
        picture.box(x, y + BOX - 5, LANE, 5, kind="green", radius=2)
    picture.text(x + 10, y + 17, name, kind="ink", size=12, room=LANE - 10)
    picture.text(x + 10, y + 32, more, kind="soft", size=11, room=LANE - 10)
    if lane == 0 and len(name) + len(layer) < 44:
        picture.text(x + LANE - 8, y + 17, layer, kind="soft mono", size=10, anchor="end")


def _between(picture: Drawing, y: float, name: str, more: str) -> None:
    middle = y + BOX / 2
    picture.box(LEFT, y + 6, 2 * LANE + GAP, BOX - 12, kind="paper edge")
    picture.text(WIDTH / 2, middle + 4, f"{name}: {more}", kind="orange", size=12, anchor="middle")
