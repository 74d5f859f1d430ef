"""The tables of docs/api*.md: every public name, from the sources.

`cd tests && python -m docs.api_page --write` writes them anew.
Knows: which rooms are public, and where names are defined. Does not know: how a site shows them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import attrs

from .page import blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = ROOT / "framework"
PAGES: Mapping[str, tuple[str, ...]] = {
    "api.md": ("pilotfish", "pilotfish.engine", "pilotfish.errors"),
    "api-parts.md": (
        "pilotfish.layers",
        "pilotfish.models",
        "pilotfish.multimodal",
        "pilotfish.invariance",
        "pilotfish.kernels",
        "pilotfish.parallel",
    ),
    "api-plugins.md": (
        "pilotfish.hookspecs",
        "pilotfish.registry",
        "pilotfish.protocols",
        "pilotfish.batch",
        "pilotfish.config",
        "pilotfish.state",
        "pilotfish.sampling",
        "pilotfish.speculation",
        "pilotfish.weights",
        "pilotfish.tokenization",
        "pilotfish.testing",
    ),
}
"""Page -> its rooms, in their order. A room has what its `__all__` lists (a file without one: its
classes and functions), and what plugins and pages import from it or from below it."""
LONGEST = 149
"""Characters of a line."""


@attrs.frozen
class Found:
    """Where a name is defined, and the first line of its docstring. name: "" for a module."""

    module: str
    name: str
    says: str = attrs.field(eq=False, default="")


def source(module: str) -> Path | None:
    """The file of a module; None where there is none."""
    path = SOURCES.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.exists()), None)


@cache
def tree(module: str) -> ast.Module:
    """The parsed file of a module that is there."""
    file = source(module)
    assert file is not None, module
    return ast.parse(file.read_text())


def first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n", 1)[0]


def statements(module: str) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
    """Those of a module, of its `if`s too, each with the one behind it."""
    body = list(tree(module).body)
    body += [inner for one in body if isinstance(one, ast.If) for inner in one.body]
    yield from zip(body, [*body[1:], None], strict=True)


def find(module: str, name: str) -> Found | None:
    """Where `from module import name` comes from; None where there is no such name."""
    for one, behind in statements(module):
        match one:
            case ast.ImportFrom(module=str(other), names=names) if other.startswith("pilotfish"):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return find(other, alias.name)
            case ast.ClassDef(name=defined) | ast.FunctionDef(name=defined) if defined == name:
                return Found(module, name, first_line(ast.get_docstring(one)))
            case (
                ast.Assign(targets=[ast.Name(id=target)])
                | ast.AnnAssign(target=ast.Name(id=target))
            ) if target == name:
                match behind:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        return Found(module, name, first_line(text))
                return Found(module, name)
    if source(f"{module}.{name}"):
        return Found(
            f"{module}.{name}", "", first_line(ast.get_docstring(tree(f"{module}.{name}")))
        )
    return None


def listed(room: str) -> list[str]:
    """The names that a room itself says are public."""
    for one, _ in statements(room):
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(one.value)]
    file = source(room)
    if file is None or file.name == "__init__.py":
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [one.name for one, _ in statements(room) if isinstance(one, kinds)]
    return [name for name in names if not name.startswith("_")]


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of the core, as plugins, examples and the pages' own programs import them."""
    texts = [
        file.read_text()
        for folder in ("plugins", "examples", "docs/examples")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]
    for page in sorted(DOCS.rglob("*.md")):
        shown = [b.text for b in blocks(page.read_text()) if b.info in ("python", "py")]
        texts += [text for text in shown if "import " in text]  # others may be parts of programs
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("pilotfish."):
                yield from ((str(node.module), alias.name) for alias in node.names)


def tables() -> dict[str, dict[str, Found]]:
    """Room -> name below it -> where it is defined; what is in one room is in no later one."""
    rooms = [room for page in PAGES.values() for room in page]
    used = sorted(set(imported()))
    found: dict[str, dict[str, Found]] = {}
    done: set[Found] = set()
    for room in rooms:
        names = dict.fromkeys(listed(room))
        if room != "pilotfish":
            names |= dict.fromkeys(
                f"{module}.{name}".removeprefix(f"{room}.")
                for module, name in used
                if f"{module}.".startswith(f"{room}.")
            )
        found[room] = {}
        for name in names:
            module, _, last = f"{room}.{name}".rpartition(".")
            one = find(module, last)
            if one is not None and one not in done:  # pages show imports that are refused, too
                done.add(one)
                found[room][name] = one
    return found


def table(names: Mapping[str, Found]) -> str:
    """One row a name, in the order of the alphabet."""
    rows = []
    for name, found in sorted(names.items(), key=lambda pair: pair[0].casefold()):
        row = f"| `{name}` | {found.says.replace('|', chr(92) + '|')} |"
        assert len(row) <= LONGEST, row
        rows.append(row.replace("|  |", "| |"))
    return "\n".join(["| name | |", "|---|---|", *rows]) + "\n"


def written(page: str, name: str) -> str:
    """The page with its tables as they should be."""
    found = tables()
    for room in PAGES[name]:
        begin, end = f"<!-- {room}: begin -->\n", f"<!-- {room}: end -->"
        before, _, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        assert ended, f"{name} has no place for {room}"
        page = before + begin + table(found[room]) + end + after
    return page


if __name__ == "__main__":
    for each in PAGES:
        text = written((DOCS / each).read_text(), each)
        if "--write" in sys.argv:
            (DOCS / each).write_text(text)
        else:
            print(text)
