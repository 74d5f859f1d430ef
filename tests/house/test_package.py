"""`import pilotfish` is light, and offers exactly the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pilotfish

HEAVY = ("torch", "transformers", "triton", "numpy", "prompt_toolkit")
LIGHT = (
    "import pilotfish",
    "from pilotfish import load_registry; load_registry()",
    "from pilotfish import SamplingParams, CacheConfig, PipelineConfig, UserError",
    "from pilotfish.cli import main; main(['plugins'])",
    "from pilotfish.cli import main; main(['plugins', '--json'])",
    "from pilotfish.cli import main; main(['--help'])",
    "from pilotfish.cli import main; main(['--version'])",
    "import pilotfish.protocols, pilotfish.batch, pilotfish.errors, pilotfish.hookspecs",
    "import pilotfish.testing, pilotfish.testing.examples, pilotfish.testing.pytest_plugin",
)


@pytest.mark.parametrize("code", LIGHT)
def test_a_fresh_process_imports_nothing_heavy(code: str) -> None:
    check = f"import sys; print(sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_every_public_name_resolves() -> None:
    for name in pilotfish.__all__:
        assert getattr(pilotfish, name) is not None
    assert sorted(pilotfish.__all__) == pilotfish.__all__
    assert dir(pilotfish) == pilotfish.__all__


def test_a_public_name_is_the_one_object_of_its_home() -> None:
    from pilotfish.config import SamplingParams
    from pilotfish.registry import Registry

    assert pilotfish.SamplingParams is SamplingParams
    assert pilotfish.Registry is Registry


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pilotfish' has no attribute 'LMM'"):
        pilotfish.LMM  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert pilotfish.__version__ == version("pilotfish")


def test_importing_changes_no_global_state() -> None:
    code = """
import logging, os, signal, sys, warnings
def state():
    return (dict(os.environ), len(logging.root.handlers), logging.root.level,
            signal.getsignal(signal.SIGINT), list(warnings.filters), sys.excepthook)
before = state()
import pilotfish
pilotfish.load_registry()
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
