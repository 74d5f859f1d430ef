"""What a terminal shows while a model loads, and that nothing of it stays."""

from __future__ import annotations

import pytest

from support.screens import Terminal

PROGRAM = (
    "import sys; from pilotfish.cli import main, status_line; "
    "status_line._SILENT_S = 0; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize(
    ("asked", "code", "last"),
    [
        (["The capital of France is", "--temperature", "0", "--max-tokens", "1"], 0, " Paris"),
        (["--chat", "hi", "--chat-template", "{% for"], 2, "pilotfish: error: "),
    ],
)
def test_a_line_says_that_it_loads_and_goes(asked: list[str], code: int, last: str) -> None:
    with Terminal("-c", PROGRAM, "generate", "demo", *asked, "--max-length", "64") as t:
        t.wait(lambda t: t.line == "loading demo")
        assert t.end() == code
        assert "loading" not in "".join(t.lines)
        assert any(line.startswith(last) for line in t.lines), t.lines
