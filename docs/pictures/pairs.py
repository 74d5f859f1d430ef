"""plugins.svg: architectures on one side, drafters on the other, and one contract between them.

Knows: what the registry says. Does not know: any plugin's name.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from drawing import Drawing

from pilotfish.registry import Registry, SpeculatorSpec

WIDTH, ROW, TOP, PAD = 960, 24, 92, 16
LEFT, LEFT_WIDTH = 24, 340
MIDDLE, MIDDLE_WIDTH = 420, 120
RIGHT, RIGHT_WIDTH = 596, 340
CARD = 84


def draw(registry: Registry) -> str:
    """The picture of these plugins."""
    targets = [
        (plugin.name, [name for spec in plugin.architectures for name in spec.names])
        for plugin in registry.plugins
        if plugin.architectures
    ]
    drafters = [spec for plugin in registry.plugins for spec in plugin.speculators]
    num_targets, num_pairs = len(registry.architectures), pairs(registry)
    left = sum(ROW * (len(names) + 1) + PAD for _, names in targets)
    right = CARD * len(drafters)
    height = max(left, right) - PAD
    title = "Any drafter on any architecture"
    num_all = num_targets * len(drafters)
    counts = (
        f"{num_targets} architectures + {len(drafters)} drafters: {num_targets + len(drafters)} "
        f"parts, and {'all' if num_pairs == num_all else f'{num_pairs} of'} {num_all} pairs run"
    )
    told = [f"{name}: {', '.join(names)}" for name, names in targets]
    drawn = [f"{one.method}, reads {reads(one)}, asks for {asks(one)}" for one in drafters]
    desc = f"{counts}. Architectures: {'; '.join(told)}. Drafters: {'; '.join(drawn)}."
    drawing = Drawing(WIDTH, TOP + height + 56, title, desc)
    drawing.text(LEFT, 34, title, kind="ink bold", size=18)
    drawing.text(LEFT, 56, counts, kind="soft")
    _middle(drawing, height)
    _targets(drawing, targets, TOP + (height - left + PAD) / 2)
    _drafters(drawing, drafters, TOP + (height - right + PAD) / 2)
    said = "A new one on either side runs with all of the other that offer what it asks for."
    drawing.text(LEFT, TOP + height + 36, said, kind="soft")
    return str(drawing)


def of_the_house(registry: Registry, distribution: str = "pilotfish") -> Registry:
    """Only the plugins that one distribution brings, whatever else is installed."""
    ours = tuple(one for one in registry.plugins if one.distribution == distribution)
    return attrs.evolve(registry, plugins=ours)


def pairs(registry: Registry) -> int:
    """How many targets and methods the registry composes."""
    return sum(
        spec.needs <= registry.route(name).architecture.capabilities
        and (not spec.targets or name in spec.targets)
        for name in registry.architectures
        for plugin in registry.plugins
        for spec in plugin.speculators
    )


def reads(spec: SpeculatorSpec) -> str:
    """What a drafter's checkpoint is, in words."""
    names = spec.draft_architectures
    if not names:
        return "no checkpoint"
    if "*" in names:
        return "any architecture as draft"
    return f"{len(names)} kinds of drafts" if len(names) > 1 else "1 kind of draft"


def asks(spec: SpeculatorSpec) -> str:
    """What a drafter wants of its target, in words."""
    return ", ".join(sorted(spec.needs)) or "nothing"


def _middle(drawing: Drawing, height: float) -> None:
    x = MIDDLE + MIDDLE_WIDTH / 2
    drawing.box(MIDDLE, TOP, MIDDLE_WIDTH, height, kind="box edge")
    words = ["one engine", "", "state", "scheduler", "passes", "sampler", "acceptance"]
    for place, word in enumerate(words):
        y = TOP + height / 2 + (place - 3) * 22 + 5
        drawing.text(x, y, word, kind="soft" if place else "ink bold", anchor="middle", room=110)


def _targets(drawing: Drawing, targets: Sequence[tuple[str, Sequence[str]]], y: float) -> None:
    for plugin, names in targets:
        drawing.text(LEFT, y + 16, plugin, kind="soft", size=12, room=LEFT_WIDTH)
        y += ROW
        for name in names:
            drawing.box(LEFT, y, LEFT_WIDTH, ROW - 4, kind="box edge", radius=4)
            drawing.text(LEFT + 10, y + 14, name, kind="blue mono", size=12, room=LEFT_WIDTH - 20)
            middle = y + ROW / 2 - 2
            drawing.line((LEFT + LEFT_WIDTH, middle), (MIDDLE, middle), kind="line")
            y += ROW
        y += PAD


def _drafters(drawing: Drawing, drafters: Sequence[SpeculatorSpec], y: float) -> None:
    for spec in drafters:
        height, middle = CARD - PAD, y + (CARD - PAD) / 2
        drawing.box(RIGHT, y, RIGHT_WIDTH, height, kind="box edge", radius=4)
        x, room = RIGHT + 10, RIGHT_WIDTH - 20
        drawing.text(x, y + 20, spec.method, kind="green mono", room=room)
        words = (f"reads {reads(spec)}", f"needs {asks(spec)}")
        for place, line in enumerate(words):
            drawing.text(x, y + 38 + 17 * place, line, kind="soft", size=11, room=room)
        drawing.line((RIGHT, middle), (MIDDLE + MIDDLE_WIDTH, middle), kind="line")
        y += CARD
