"""A drawing: shapes and texts to an SVG file that stands alone.

Knows: colors for light and dark, room for texts, XML. Does not know: any picture.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Literal

NAMESPACE = "http://www.w3.org/2000/svg"
COLORS = {
    "paper": ("#ffffff", "#0d1117"),
    "box": ("#f3f5f8", "#171e27"),
    "edge": ("#b4bdc7", "#4b545e"),
    "line": ("#59636e", "#9198a1"),
    "ink": ("#1f2328", "#f0f6fc"),
    "soft": ("#59636e", "#9198a1"),
    "blue": ("#0860c4", "#58a6ff"),
    "green": ("#1a7f37", "#3fb950"),
    "orange": ("#b84a00", "#f0883e"),
    "screen": ("#0d1117", "#0d1117"),
    "screen-ink": ("#e6edf3", "#e6edf3"),
    "screen-soft": ("#9198a1", "#9198a1"),
    "screen-green": ("#56d364", "#56d364"),
    "screen-red": ("#ff7b72", "#ff7b72"),
}
"""Of each class: on a light page, on a dark one."""
STROKED = ("edge", "line")
"""Classes that color lines; all others fill."""
SANS = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
LETTER = 0.6
"""Width of a letter over its size: that of MONO, and more than SANS takes on average."""


class Drawing:
    """An SVG file in the making. Lengths are pixels.

    title, desc: what a screen reader says. ground: the class of what is under all of it.
    """

    def __init__(
        self, width: float, height: float, title: str, desc: str, *, ground: str = "paper"
    ) -> None:
        self.width, self.height = width, height
        size = {"width": number(width), "height": number(height)}
        self._root = ET.Element(
            "svg",
            {"xmlns": NAMESPACE, **size, "viewBox": f"0 0 {number(width)} {number(height)}"},
            role="img",
        )
        self._root.set("aria-labelledby", "title desc")
        self._add("title", id="title").text = title
        self._add("desc", id="desc").text = desc
        self._add("style").text = style()
        head = {"viewBox": "0 0 8 8", "refX": "7", "refY": "4", "orient": "auto"}
        marker = ET.SubElement(
            self._add("defs"), "marker", head, id="head", markerWidth="8", markerHeight="8"
        )
        ET.SubElement(marker, "path", {"class": "soft", "d": "M0 0 8 4 0 8Z"})
        self.box(0.5, 0.5, width - 1, height - 1, kind=f"{ground} edge", radius=8)

    def box(
        self, x: float, y: float, width: float, height: float, *, kind: str, radius: float = 5
    ) -> None:
        """A rectangle. kind: classes of COLORS."""
        places = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        self._add("rect", **{"class": kind}, **{k: number(v) for k, v in places.items()})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        kind: str = "ink",
        size: float = 13,
        anchor: Literal["start", "middle", "end"] = "start",
        room: float | None = None,
        **more: str,
    ) -> None:
        """A line of text, y its base line. kind: classes of COLORS, `mono`, `bold`, `struck`.

        room: the width that it must fit in; None: to the drawing's edge. Raises ValueError.
        """
        if room is None:
            room = {"start": self.width - x, "middle": 2 * min(x, self.width - x), "end": x}[anchor]
        if (wanted := len(text) * size * LETTER) > room + 0.01:
            raise ValueError(f"{text!r} is {wanted:.0f} pixels wide; wanted at most {room:.0f}")
        if anchor != "start":
            more["text-anchor"] = anchor
        places = {"x": x, "y": y, "font-size": size}
        self._add(
            "text", **{"class": kind}, **{k: number(v) for k, v in places.items()}, **more
        ).text = text

    def line(
        self, *points: Sequence[float], kind: str = "line", arrow: bool = False, **more: str
    ) -> None:
        """A line from point to point. arrow: with a head at its end."""
        if arrow:
            more["marker-end"] = "url(#head)"
        path = "M" + " ".join(number(value) for point in points for value in point)
        self._add("path", **{"class": kind}, d=path, **more)

    def __str__(self) -> str:
        ET.indent(self._root, " ")
        return ET.tostring(self._root, encoding="unicode") + "\n"

    def _add(self, tag: str, **attributes: str) -> ET.Element:
        return ET.SubElement(self._root, tag, attributes)


def number(value: float) -> str:
    """Of a length: at most two places, none that say nothing."""
    return f"{round(value, 2):g}"


def style() -> str:
    """CSS of the classes. Without media queries, or where none is dark, the light colors hold."""

    def rules(which: int) -> str:
        return "".join(
            f".{name}{{{'stroke' if name in STROKED else 'fill'}:{pair[which]}}}"
            for name, pair in COLORS.items()
        )

    return (
        f"text{{font-family:{SANS}}}.mono{{font-family:{MONO}}}.bold{{font-weight:600}}"
        ".line{fill:none}.struck{text-decoration:line-through}"
        f"{rules(0)}@media (prefers-color-scheme:dark){{{rules(1)}}}"
    )
