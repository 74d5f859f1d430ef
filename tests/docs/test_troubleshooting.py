"""docs/troubleshooting.md against the code: every message that it quotes is one that is said.

Knows: texts in source files. Does not know: when they are said.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.compile(r"\*\*`([^`]+)`\*\*")


@cache
def texts() -> tuple[str, ...]:
    """Every text in the source that is no docstring; a NUL stands for what is put into it."""
    found: list[str] = []
    for folder in ("framework/pilotfish", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += texts_of(ast.parse(path.read_text()))
    return tuple(found)


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Of one file."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
        ):
            yield node.value


def unsaid(page: str) -> list[str]:
    """The messages of a page that no text in the source has; `...` stands for anything."""
    missing = []
    for quoted in QUOTED.findall(page):
        parts = [re.escape(part.strip()) for part in " ".join(quoted.split()).split("...")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        if not any(pattern.search(text) for text in texts()):
            missing.append(quoted)
    return missing


def test_every_quoted_message_is_one_that_is_said() -> None:
    page = PAGE.read_text()
    assert len(QUOTED.findall(page)) > 50
    assert unsaid(page) == []


def test_a_message_that_nobody_says_is_found() -> None:
    said = "- **`the model's name is empty`**: yes\n- **`the hub is ... asleep`**: no\n"
    assert unsaid(said) == ["the hub is ... asleep"]


def test_a_docstring_is_no_message() -> None:
    source = (
        '"""Never said."""\ndef f(x):\n    """Nor this."""\n    raise E(f"got {x}; " "wanted y")\n'
    )
    assert list(texts_of(ast.parse(source))) == ["got \0; wanted y", "got ", "; wanted y"]
