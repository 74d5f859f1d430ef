"""Libraries and programs that tests compile, kept in build/native-tests until a source changes.

Knows: compilers, and which are not on this machine. Does not know: what the programs print.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pilotfish.kernels.native.building import (
    HERE,
    INCLUDE,
    INSTRUCTION_SETS,
    KERNELS,
    SOURCE,
    build,
    digest,
    find_compiler,
    is_stale,
    library_name,
    machine,
)

TESTS = Path(__file__).resolve().parent
CACHE = TESTS.parents[1] / "build" / "native-tests"

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="a test for Linux")
needs_compiler = pytest.mark.skipif(
    find_compiler() is None, reason="no C++ compiler is on this machine"
)


def interface() -> set[str]:
    """Names that the library offers, as its sources have them."""
    text = "".join((SOURCE / name).read_text() for name in ("main.cpp", "tables.h"))
    return set(re.findall(r"^PF_API .*?\b(pf_\w+)\(", text, re.M))


def needs_programs(*names: str) -> pytest.MarkDecorator:
    """Skips where one is missing, and says which: `make test-all` and CI list it."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")


def needs_package(name: str) -> pytest.MarkDecorator:
    """Skips where a package is not installed."""
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"not installed: {name} (make test-all installs it)")


def library_file() -> Path:
    """The library of these sources for this machine: the package's own where it is new enough.

    PILOTFISH_NATIVE_LIBRARY names another, as everywhere.
    """
    if os.environ.get("PILOTFISH_NATIVE_LIBRARY"):
        return Path(os.environ["PILOTFISH_NATIVE_LIBRARY"])
    installed = HERE / library_name()
    return compiled_library("here") if is_stale(installed) else installed


def compiled_library(
    variant: str,
    compiler: Sequence[str] = (),
    *,
    target_machine: str | None = None,
    options: Sequence[str] = (),
) -> Path:
    """The library by another compiler, or with more options."""
    with alone(variant):
        output = _folder(variant, repr((digest(), compiler, options))) / library_name("linux")
        if not output.exists():
            build(output, compiler=compiler, target_machine=target_machine, options=options)
    return output


def compiled_program(
    variant: str,
    sources: Sequence[str],
    compiler: Sequence[str] = (),
    *,
    target_machine: str | None = None,
    options: Sequence[str] = (),
) -> Path:
    """A program, or a library of one's own, from files of this folder and the kernels' headers."""
    command = list(compiler) or find_compiler()
    assert command is not None
    text = "".join(path.read_text() for path in sorted(TESTS.glob("*.[ch]*")))
    # The headers want an instruction set; what it computes itself is integers.
    first = next(iter(INSTRUCTION_SETS[target_machine or machine()].values()))
    includes = [f"-I{INCLUDE}", f"-I{SOURCE}", f"-I{KERNELS}"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unused-function", "-DPF_ISA=driver"]
    files = [str(TESTS / name) for name in sources]
    with alone(variant):
        output = _folder(variant, repr((digest(), command, options, text))) / "program"
        making = output.with_suffix(".new")
        if not output.exists():
            done = subprocess.run(
                [*command, *flags, *first, *includes, *options, *files, "-o", str(making), "-ldl"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            making.replace(output)
    return output


@contextmanager
def alone(variant: str) -> Iterator[None]:
    """Inside of it no other process of tests makes that variant: it waits, and finds it made."""
    import fcntl

    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{variant}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder(variant: str, key: str) -> Path:
    """For one state of the sources; others of the same variant are deleted."""
    folder = CACHE / variant / hashlib.sha256(key.encode()).hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
