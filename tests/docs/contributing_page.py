"""The tables of CONTRIBUTING.md: rooms of the core by floor, and plugins, by their docstrings.

`cd tests && python -m docs.contributing_page --write` writes them anew.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "framework" / "pilotfish"
PAGE = ROOT / "CONTRIBUTING.md"


def floors() -> tuple[set[str], ...]:
    """Rooms, ground first, as the test of the layout has them."""
    (file,) = (ROOT / "tests").rglob("test_layout.py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: tuple[set[str], ...] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"no FLOORS in {file}")


def summary(file: Path, name: str = "") -> str:
    """The first sentence of a file's docstring. name: of a room, left out where it begins."""
    line = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
    says = re.sub(rf"^{name}\w*: ", "", line, flags=re.IGNORECASE) if name else line
    return (says[:1].upper() + says[1:]).split(". ")[0].rstrip(".")


def rooms() -> str:
    """One row a room."""
    rows = ["| floor | room | what is in it |", "|---|---|---|"]
    for floor, names in enumerate(floors(), 1):
        for name in sorted(names):
            folder = CORE / name / "__init__.py"
            file = folder if folder.exists() else CORE / f"{name}.py"
            shown = f"{name}/" if file == folder else name
            rows.append(f"| {floor} | `{shown}` | {summary(file, name)} |")
    return "\n".join(rows) + "\n"


def plugins() -> str:
    """One row a plugin."""
    rows = ["| plugin | what it brings |", "|---|---|"]
    for file in sorted((ROOT / "plugins").glob("*/pilotfish_*/__init__.py")):
        folder = file.parents[1].relative_to(ROOT).as_posix()
        says = summary(file).split(": hooks only")[0].removesuffix(" as a Pilotfish plugin")
        rows.append(f"| [{folder}]({folder}/README.md) | {says} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with its tables as they should be."""
    for name, table in {"rooms": rooms(), "plugins": plugins()}.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        assert ended, f"no place for {name}"
        page = before + begin + table + end + after
    return page


if __name__ == "__main__":
    text = written(PAGE.read_text())
    if "--write" in sys.argv:
        PAGE.write_text(text)
    else:
        print(text)
