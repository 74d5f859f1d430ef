"""How far a decode step walks, counted by benchmarks/walks.py: bounds, and what the pages say."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kernels.native_cases import needs_library
from pilotfish.engine.runner import Runner

ROOT = Path(__file__).parents[2]
BOUNDS = {"planned": (24, 85), "called": (40, 130)}
"""Files and functions."""
MORE_WITH_NGRAM = (8, 40)

pytestmark = needs_library


@cache
def walks() -> ModuleType:
    spec = util.spec_from_file_location("walks", ROOT / "benchmarks" / "walks.py")
    assert spec is not None
    assert spec.loader is not None
    made = util.module_from_spec(spec)
    sys.modules["walks"] = made
    spec.loader.exec_module(made)
    return made


@cache
def walk(way: str) -> Any:
    return walks().walk("demo", way)


def counts(way: str) -> tuple[int, int]:
    found = walk(way)
    return len(found.files), len(found.functions)


@pytest.mark.parametrize("way", BOUNDS)
def test_a_decode_step_is_a_short_walk(way: str) -> None:
    files, functions = counts(way)
    assert (files <= BOUNDS[way][0], functions <= BOUNDS[way][1]) == (True, True), (
        files,
        functions,
        walk(way).functions,
    )


def test_drafting_adds_a_short_walk() -> None:
    more = [
        with_ngram - plain
        for with_ngram, plain in zip(counts("ngram"), counts("planned"), strict=True)
    ]
    assert more[0] <= MORE_WITH_NGRAM[0], walk("ngram").files
    assert more[1] <= MORE_WITH_NGRAM[1], walk("ngram").functions


def test_a_detour_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter sees a file more, its functions and a comprehension."""
    folder = tmp_path / "pilotfish_detour"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "around.py").write_text(
        "def detour(real):\n"
        "    def commit(self, *args):\n"
        "        sorted(one for one in args[:0])\n"
        "        return real(self, *args)\n"
        "    return commit\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from pilotfish_detour.around import detour  # type: ignore[import-not-found]

    before = walk("planned")
    monkeypatch.setattr(Runner, "commit", detour(Runner.commit))
    found = walks().walk("demo", "planned")
    assert set(found.files) - set(before.files) == {"pilotfish_detour/around.py"}
    assert len(found.functions) == len(before.functions) + 2


def test_the_page_of_a_requests_life_names_the_files_of_a_step() -> None:
    page = (ROOT / "docs" / "life-of-a-request.md").read_text()
    _, _, section = page.partition("## One decode step, file by file")
    section, _, _ = section.partition("\n## ")
    named = re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)
    passed = [file.removeprefix("pilotfish/") for file in walk("planned").files]
    assert named == passed


def test_the_page_of_walks_says_what_is_counted() -> None:
    page = (ROOT / "docs" / "benchmarks" / "walks.md").read_text()
    said = dict(re.findall(r"^\| (\w+) \| .*?\| (\d+ \| \d+) \|$", page, re.MULTILINE))
    for way in walks().WAYS:
        assert said[way] == " | ".join(map(str, counts(way))), way
