"""What the README of a kernel shows is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import page

KERNELS = Path(__file__).parents[2] / "framework" / "pilotfish" / "kernels"
PAGES = [path for path in sorted(KERNELS.glob("*/README.md")) if "```python" in path.read_text()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_code_on_the_page_runs(path: Path) -> None:
    assert page.run(path)


def test_there_is_such_a_page() -> None:
    assert "paged_attention" in [path.parent.name for path in PAGES]
