"""Runs the code blocks of one page of the documentation, in order: `python page.py PAGE`.

```python              run; the blocks of a page share their names
```console             each `$ command` runs in a shell; what it prints (`...` stands for
                       anything) and its exit code (`[2]`; 0 when not written) must fit
```LANGUAGE file=PATH  must stand, word for word, in that file of the example
anything else          is not run
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "third_party"


@attrs.frozen
class Block:
    """A fenced block: its info string, its lines, and the line of the page that it begins at."""

    info: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page. Raises ValueError for a fence that is never closed."""
    info: str | None = None
    start, kept = 0, list[str]()
    for number, line in enumerate(page.splitlines(), 1):
        if not line.startswith("```"):
            kept.append(line)
        elif info is None:
            info, start, kept = line.removeprefix("```").strip(), number + 1, []
        else:
            yield Block(info, "\n".join(kept) + "\n", start)
            info = None
    if info is not None:
        raise ValueError(f"the fence at line {start - 1} is never closed")


def run(page: Path) -> int:
    """Runs a page in the current folder; returns how many blocks were checked."""
    names = vars(sys.modules.setdefault("__page__", ModuleType("__page__")))
    count = 0
    for block in blocks(page.read_text()):
        language, _, file = block.info.partition(" file=")
        if file:
            check_excerpt(block, EXAMPLE / file)
        elif language == "python":
            # Blank lines before it give tracebacks the page's own line numbers.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec"), names)
        elif language == "console":
            check_console(block)
        else:
            continue
        count += 1
    return count


def check_excerpt(block: Block, file: Path) -> None:
    """Raises AssertionError unless the block stands in the file."""
    assert block.text in file.read_text(), f"line {block.line}: not in {file.name}:\n{block.text}"


def check_console(block: Block) -> None:
    """Runs each command of a block; raises AssertionError unless it prints what is written."""
    for part in ("\n" + block.text).split("\n$ ")[1:]:
        command, _, wanted = part.partition("\n")
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        got = done.stdout + done.stderr
        if done.returncode:
            got += f"[{done.returncode}]\n"
        wanted = wanted.rstrip("\n") + "\n" if wanted.strip() else ""
        fits = doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)
        assert fits, f"line {block.line}: $ {command}\nwanted:\n{wanted}\ngot:\n{got}"


if __name__ == "__main__":
    print(run(Path(sys.argv[1])), "blocks")
