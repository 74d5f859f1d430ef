"""Templates of tensor names: "layers.{layer}.norm.weight" and the numbers that fill them.

Knows: how a template is matched and filled. Does not know: rules, files or shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

_FIELD = re.compile(r"\{(\w+)\}")
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"(?<![^.])(?:\d+|\{\w+\})(?![^.])")


class TemplateTable(Generic[T]):
    """Values by name template; looked up in time that does not grow with the number of templates.

    Templates are grouped by their text with every dotted number blanked out, so only the few that
    can match a name are tried.
    """

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._groups: dict[str, list[tuple[re.Pattern[str], T]]] = {}
        for template, value in entries:
            pattern = _pattern_of(template)
            self._groups.setdefault(_NUMBER.sub("#", template), []).append((pattern, value))

    def find(self, name: str) -> list[tuple[T, Mapping[str, str]]]:
        """Every value whose template fits the name, in order, with the numbers it binds."""
        return [
            (value, match.groupdict())
            for pattern, value in self._groups.get(_NUMBER.sub("#", name), ())
            if (match := pattern.fullmatch(name))
        ]


def fill(template: str, numbers: Mapping[str, str]) -> str:
    """Puts the numbers into a template. A field that is not bound is a mistake in the rules."""
    return _FIELD.sub(lambda field: numbers[field[1]], template)


def shortened(items: Iterable[str], at_most: int = 8) -> list[str]:
    """Many names that differ in their numbers alone become "first ... last (37 alike)".

    at_most: as many as this are listed one by one. Order: by the first of each kind.
    """
    alike: dict[str, list[str]] = {}
    for item in items:
        alike.setdefault(_DIGITS.sub("#", item), []).append(item)
    found: list[str] = []
    for group in alike.values():
        if len(group) > at_most:
            last = group[-1].partition(" (")[0]
            found.append(f"{group[0]} ... {last} ({len(group)} alike)")
        else:
            found.extend(group)
    return found


def _pattern_of(template: str) -> re.Pattern[str]:
    text, seen = "", set[str]()
    end = 0
    for field in _FIELD.finditer(template):
        name = field[1]
        text += re.escape(template[end : field.start()])
        text += f"(?P={name})" if name in seen else f"(?P<{name}>[0-9]+)"
        seen.add(name)
        end = field.end()
    return re.compile(text + re.escape(template[end:]))
