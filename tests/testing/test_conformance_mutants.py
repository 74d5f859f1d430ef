"""The conformance kit can fail: every planted bug is noticed by the promise it should break."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kernels.native_cases import needs_library
from pilotfish import SpeculativeConfig, load_registry
from pilotfish.kernels import backend
from pilotfish.kernels.sampling import native as native_sampling
from pilotfish.testing import PROMISES, Subject, check, promise_named, tiny_subjects
from support.conformance_page import PAGE, table, written
from support.planted_bugs import BUGS, Bug

WANTED = {
    *range(1, 5),
    *range(6, 10),
    *range(12, 16),
    *range(17, 21),
    22,
    *range(24, 29),
    41,
    43,
    44,
}
"""Pitfalls that an architecture, or a drafter of the kit's own, can show. Those of one format of
drafts (16, 21, 29 to 37) are planted in the tests of the drafters."""
LONGEST = 500
"""Characters of what is said: all texts and log probabilities of a run are no help."""

MakeSubject = Callable[[tuple[str, str]], Subject]


@pytest.fixture(scope="module")
def subject_of() -> Iterator[MakeSubject]:
    """Fresh subjects, without loaded models, over checkpoints that are written once."""
    registry, made = load_registry(), dict[tuple[str, str], Subject]()
    with ExitStack() as exits:

        def make(key: tuple[str, str]) -> Subject:
            if key not in made:
                opened = tiny_subjects(key[0], registry, only=[key[1]])
                (made[key],) = exits.enter_context(opened)
            first = made[key]
            fresh = Subject(
                name=first.name,
                model=first.model,
                registry=registry,
                dtypes=("float32",),
                num_threads=1,
                draft=first.model,
                speculative=SpeculativeConfig(method="small_model"),
                example_of=first.example_of,
            )
            exits.callback(fresh.close)
            return fresh

        yield make


@pytest.fixture(scope="module")
def kept() -> dict[Any, str]:
    """Promise, example and kernels, of which no bug is planted -> what is said of it; "" if kept.

    It is asked for beside each bug, and many bugs break one promise.
    """
    return {}


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where is kept what models find out of the kernels in which no bug is planted."""
    return tmp_path_factory.mktemp("probes")


def compute_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs are planted in Python, and what native calls compute would not pass through them.

    That the native calls give what Python's steps give is tested with each of them.
    """
    monkeypatch.setattr(backend, "_of_cpu", lambda: "torch")
    monkeypatch.setattr(native_sampling, "library", lambda: None)


@pytest.mark.parametrize(
    "planted",
    [pytest.param(one, marks=needs_library if one.is_native else ()) for one in BUGS],
    ids=lambda one: f"{one.number}-{one.what}",
)
def test_a_planted_bug_is_noticed(
    *,
    planted: Bug,
    subject_of: MakeSubject,
    kept: dict[Any, str],
    probes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not planted.is_native:
        compute_in_python(monkeypatch)
    promise = promise_named(planted.promise)
    asked = (planted.promise, planted.subject, planted.is_native)
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(probes))
    if asked not in kept:
        whole = check(promise, subject_of(planted.subject))
        kept[asked] = "" if whole.status == "ok" else f"{whole.status}: {whole.said}"
    assert kept[asked] == ""
    known = shutil.copytree(probes, tmp_path / "probes")  # what is found from here on is the bug's
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", str(known))
    planted.plant(monkeypatch)
    broken = check(promise, subject_of(planted.subject))
    assert broken.status == "FAILED"
    assert broken.said.startswith("got ")
    crashed = broken.said.endswith("wanted none") or "cannot be run" in broken.said
    assert not crashed, "noticed by accident: something crashed"
    assert len(broken.said) <= LONGEST
    print(f"{planted.what}: {broken.said}")


def test_every_promise_can_fail_and_every_pitfall_is_planted() -> None:
    assert {planted.promise for planted in BUGS} == {promise.name for promise in PROMISES}
    assert {planted.number for planted in BUGS} >= WANTED


def test_the_tables_in_the_documentation_is_current() -> None:
    print(table())
    page = PAGE.read_text()
    assert written(page) == page, "run: cd tests && python -m support.conformance_page"
