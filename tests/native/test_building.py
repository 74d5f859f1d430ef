"""How the library is compiled: what an instruction set's object may hold, when it is compiled anew,
and what is said where it cannot be.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from native.compiled import interface, library_file, needs_compiler, needs_programs, on_linux
from pilotfish.kernels.native import building
from pilotfish.kernels.native.building import (
    COMMON,
    HERE,
    INCLUDE,
    INSTRUCTION_SETS,
    KERNELS,
    SOURCE,
    TABLE,
    BuildError,
    Library,
)

GNU = ["g++"]
ARM = ["aarch64-linux-gnu-g++"]


def compile_object(
    compiler: Sequence[str], flags: Sequence[str], source: str, output: Path
) -> subprocess.CompletedProcess[str]:
    """One object, as `build` makes it but for -O1, which leaves more functions on their own."""
    includes = [f"-I{INCLUDE}", f"-I{SOURCE}", f"-I{KERNELS}", '-DPF_KERNELS_H="kernels.h"']
    files = ["-c", str(SOURCE / source), "-o", str(output)]
    return subprocess.run(
        [*compiler, *COMMON, "-O1", *includes, '-DPF_SOURCES="test"', *flags, *files],
        capture_output=True,
        text=True,
        check=False,
    )


def symbols(object_file: Path) -> list[tuple[str, str]]:
    """Kind and name of each, as nm has them."""
    done = subprocess.run(["nm", str(object_file)], capture_output=True, text=True, check=True)
    return [
        (found[1], found[2])
        for found in re.finditer(r"^[0-9a-f ]{16} (\w) (\S+)$", done.stdout, re.M)
    ]


SETS = [
    pytest.param("x86_64", "avx2", GNU, marks=needs_programs("g++", "nm")),
    pytest.param("x86_64", "avx512", GNU, marks=needs_programs("g++", "nm")),
    pytest.param("aarch64", "neon", ARM, marks=needs_programs(ARM[0], "nm")),
]


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(("machine", "name", "compiler"), SETS)
def test_an_instruction_sets_object_shares_no_function_with_another(
    machine: str, name: str, compiler: list[str], tmp_path: Path
) -> None:
    """The linker keeps one copy of functions of one name: it could be one that needs AVX-512."""
    flags = [*INSTRUCTION_SETS[machine][name], *TABLE, f"-DPF_ISA={name}"]
    done = compile_object(compiler, flags, "table.cpp", tmp_path / "table.o")
    assert done.returncode == 0, done.stderr
    found = symbols(tmp_path / "table.o")
    public = {symbol for kind, symbol in found if kind in "ABCDGRST"}
    assert public == {f"pf_table_{name}"}
    shared = [symbol for kind, symbol in found if kind in "uvVwW"]
    own = f"9pilotfish{len(name)}{name}"  # its namespace, as the name in the object has it
    assert [symbol for symbol in shared if own not in symbol] == []
    # Nothing of the C library's mathematics either: other systems' round otherwise.
    needed = {symbol for kind, symbol in found if kind == "U"} - {"_GLOBAL_OFFSET_TABLE_"}
    assert needed <= {"memcpy", "memset", "memmove", "memcmp"}


@on_linux
@needs_programs("g++")
@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (["-mavx2"], "main.cpp"),
        (["-msse4.2"], "main.cpp"),
        ([*INSTRUCTION_SETS["x86_64"]["avx512"], "-DPF_ISA=avx2"], "table.cpp"),
        ([*INSTRUCTION_SETS["x86_64"]["avx512"], "-mavx512bf16", "-DPF_ISA=avx512"], "table.cpp"),
        ([*INSTRUCTION_SETS["x86_64"]["avx2"], "-DPF_ISA=avx512"], "table.cpp"),
    ],
)
def test_what_is_compiled_for_other_instructions_is_refused(
    flags: list[str], source: str, tmp_path: Path
) -> None:
    done = compile_object(
        GNU, ["-fsyntax-only", "-Wfatal-errors", *flags], source, tmp_path / "x.o"
    )
    assert done.returncode != 0
    assert "-march" in done.stderr


@on_linux
@needs_compiler
@needs_programs("nm")
def test_the_library_exports_its_interface_only() -> None:
    listing = ["nm", "-D", "--defined-only", str(library_file())]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    assert exported == interface()
    assert exported >= {"pf_find", "pf_run", "pf_sources"}


def test_every_source_counts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(KERNELS, kernels)
    monkeypatch.setattr(building, "KERNELS", kernels)
    monkeypatch.setattr(building, "SOURCE", kernels / "native/source")
    monkeypatch.setattr(building, "INCLUDE", kernels / "native/include")
    source = building.SOURCE
    library = Library("_x", source.parent, source / "kernels.h", source / "main.cpp", kernels)

    def digest() -> str:
        return building.digest(library)

    before = digest()
    assert before == digest()
    (kernels / "rms_norm/native.py").write_text("# nothing")
    assert digest() == before
    for path in ("rms_norm/native.h", "native/source/main.cpp", "native/include/pilotfish/op.h"):
        file = kernels / path
        text = file.read_text()
        file.write_text(text + "\n")
        assert digest() != before, path
        file.write_text(text)
    assert digest() == before
    monkeypatch.setattr(building, "COMMON", (*COMMON, "-ffast-math"))
    assert digest() != before


def test_a_library_is_stale_by_what_is_compiled_into_it(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    assert building.is_stale(library)
    library.write_bytes(b"...pilotfish sources 0123456789abcdef...")
    assert building.is_stale(library)
    library.write_bytes(f"...pilotfish sources {building.digest()}...".encode())
    assert not building.is_stale(library)


FAILING = [sys.executable, "-c", "import sys; sys.exit('error: no such instruction')"]


@pytest.fixture
def failing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", shlex.join(FAILING))
    monkeypatch.delenv(building.VARIABLE, raising=False)
    monkeypatch.delenv(building.TARGET_VARIABLE, raising=False)


@pytest.mark.usefixtures("failing_compiler")
def test_a_compilers_failure_is_a_notice_with_its_words(tmp_path: Path) -> None:
    notice = building.install(tmp_path / "library.so")
    for said in ("were not compiled", "no such instruction", "slower", "PILOTFISH_NATIVE=zig"):
        assert said in notice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("failing_compiler")
def test_it_is_an_error_where_the_library_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(building.VARIABLE, "require")
    with pytest.raises(BuildError, match=r"failed with 1:\nerror: no such instruction"):
        building.install(tmp_path / "library.so")


@pytest.mark.usefixtures("failing_compiler")
def test_a_library_that_is_there_outlives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"older")
    building.install(tmp_path / "library.so")
    assert (tmp_path / "library.so").read_bytes() == b"older"


def test_no_compiler_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(building, "zig", lambda: None)
    for mode in ("", "skip"):
        monkeypatch.setenv(building.VARIABLE, mode)
        assert "were not compiled" in building.install(tmp_path / "library.so")
    for mode, said in (("require", "wanted g\\+\\+, clang"), ("zig", "ziglang is not installed")):
        monkeypatch.setenv(building.VARIABLE, mode)
        with pytest.raises(BuildError, match=said):
            building.install(tmp_path / "library.so")


def test_a_compiler_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv(building.VARIABLE, "require")
    with pytest.raises(BuildError, match="no-such-compiler"):
        building.install(tmp_path / "library.so")


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("PILOTFISH_NATIVE", "'perhaps'; wanted 'require', 'zig', 'skip' or nothing"),
        ("PILOTFISH_NATIVE_TARGET", "'perhaps'; wanted one of linux-x86_64, "),
    ],
)
def test_a_variable_with_another_value_is_an_error(
    variable: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "perhaps")
    with pytest.raises(BuildError, match=said):
        building.install(tmp_path / "library.so")


def test_building_imports_the_standard_library_only() -> None:
    """Build hooks run it by its path, before anything is installed."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print('attrs' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(HERE / "building.py")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
