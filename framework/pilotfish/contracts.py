"""Contracts: what a plugin's classes and objects must have, said in one line where they do not.

Knows: how the members of a protocol are listed. Does not know: any of them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator

from pilotfish.errors import PluginError
from pilotfish.nearest import did_you_mean


def methods_of(contract: type) -> tuple[str, ...]:
    """The public methods of a protocol, class methods among them; no properties."""
    return tuple(
        name
        for kind in reversed(contract.__mro__)
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, classmethod))
    )


def attributes_of(contract: type) -> tuple[str, ...]:
    """The public attributes of a protocol that an object of it has."""
    return tuple(name for name in inspect.get_annotations(contract) if not name.startswith("_"))


def check_methods(kind: object, contract: type, what: str, optional: Iterable[str] = ()) -> None:
    """Raises PluginError naming methods of a protocol that a class, or an object, does not have.

    what: it is, and whose, for the message. optional: what may be missing.
    """
    names = [name for name in methods_of(contract) if name not in set(optional)]
    missing = [name for name in names if not callable(getattr(kind, name, None))]
    _refuse(kind, missing, contract, what)


def check_attributes(holder: object, contract: type, what: str) -> None:
    """Raises PluginError naming attributes of a protocol that an object does not have."""
    missing = [name for name in attributes_of(contract) if not hasattr(holder, name)]
    _refuse(holder, missing, contract, what)


def _refuse(holder: object, missing: list[str], contract: type, what: str) -> None:
    if not missing:
        return
    kind = holder if isinstance(holder, type) else type(holder)
    hint = did_you_mean(missing[0], [name for name in dir(kind) if not name.startswith("_")])
    raise PluginError(
        f"{what} is {kind.__module__}.{kind.__qualname__}, which has no {', '.join(missing)}; "
        f"wanted all that {contract.__module__}.{contract.__qualname__} says{hint}"
    )


def check_spelling(kind: type, optional: type, what: str) -> None:
    """Raises PluginError for a member that nobody reads and whose name is nearly that of one that a
    class may have and does not write itself: a misspelt one would be missed by nobody.

    optional: the protocol that has those names.
    """
    for written, meant in misspelt(kind, (*methods_of(optional), *attributes_of(optional))):
        raise PluginError(
            f"{what} is {kind.__module__}.{kind.__qualname__}, whose {written!r} nobody reads; "
            f"wanted {meant!r}, or a name that is less like it"
        )


def misspelt(kind: type, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(what a plugin's class has, what it looks like), for public names that nobody knows."""
    own, inherited = set[str](), set[str]()
    for one in kind.__mro__:
        names = {*vars(one), *getattr(one, "__annotations__", {})}
        names |= {field.name for field in getattr(one, "__attrs_attrs__", ())}
        is_librarys = one is object or one.__module__.startswith("pilotfish.")
        (inherited if is_librarys else own).update(names)
    public = sorted(other for other in {*known} - own if not other.startswith("_"))
    for name in sorted(own - inherited - {*known}):
        near = [] if name.startswith("_") else difflib.get_close_matches(name, public, 1, _ALIKE)
        near += [other for other in public if _is_one_letter_off(name, other)]
        if near:
            yield name, near[0]


_ALIKE = 0.85
"""How alike two names are, at least, of which one is the other misspelt."""
_SHORTEST = 5
"""Letters of the shortest names that are taken to be misspelt where one letter differs."""


def _is_one_letter_off(name: str, other: str) -> bool:
    """Whether one letter is another, or two neighbours have changed places."""
    if len(name) != len(other) or len(name) < _SHORTEST or name.startswith("_"):
        return False
    off = [place for place, (a, b) in enumerate(zip(name, other, strict=True)) if a != b]
    first, last = off[0], off[-1] + 1
    swapped = last - first == 2 and name[first:last] == other[first:last][::-1]
    return len(off) == 1 or swapped
