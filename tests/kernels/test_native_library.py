"""How the native library is found, loaded and called; what is said where it is not there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.native_cases import needs_library
from native.compiled import compiled_program, needs_compiler, on_linux
from native.team_scenarios import NUM_ELEMENTS, Add
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend, native
from pilotfish.kernels.native import building, library, run, why_not
from pilotfish.kernels.native.building import INSTRUCTION_SETS, find_compiler, machine
from pilotfish.kernels.native.library import FILE_VARIABLE, SMALL_WORK, VARIABLE

module: Any = sys.modules["pilotfish.kernels.native.library"]


@pytest.fixture
def in_force(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Loads the library anew, as a process with these variables would: its set, or why not."""

    def load(**environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        native, reason = module._load.__wrapped__()
        return f"None {reason}" if native is None else str(native.instruction_set)

    return load


@pytest.mark.skipif(os.environ.get(VARIABLE) == "none", reason=f"{VARIABLE}=none")
@pytest.mark.skipif(os.environ.get(building.VARIABLE) == "skip", reason="PILOTFISH_NATIVE=skip")
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is on this machine")
@pytest.mark.skipif(machine() not in INSTRUCTION_SETS, reason="no kernels for this processor")
def test_where_there_is_a_compiler_there_is_a_library() -> None:
    """Else every test of native kernels would be left out, and nobody would see it."""
    assert library() is not None, why_not()


def test_none_is_no_library(in_force: Callable[..., str]) -> None:
    assert in_force(**{VARIABLE: "none"}) == f"None {VARIABLE}=none"


@needs_library
def test_an_instruction_set_limits_what_is_used(in_force: Callable[..., str]) -> None:
    native = library()
    assert native is not None
    names = list(INSTRUCTION_SETS[machine()])[::-1]  # best first, as in the library
    available = [name for name in names if native.lib.pf_has_instruction_set(names.index(name))]
    for index, name in enumerate(names):
        best = next((one for one in names[index:] if one in available), None)
        assert in_force(**{VARIABLE: name}).split()[0] == str(best)
    for name in ("mmx", "avx512_bf16"):
        said = f"{VARIABLE} is {name!r}; this library has {', '.join(names)}: name one of them"
        with pytest.raises(ConfigError, match=f"^{said}"):
            in_force(**{VARIABLE: name})


def test_a_file_that_is_not_there_or_no_library_is_named(
    tmp_path: Path, in_force: Callable[..., str]
) -> None:
    missing = tmp_path / "library.so"
    with pytest.raises(ConfigError, match=f"^{FILE_VARIABLE} is {missing}: no such file; unset it"):
        in_force(**{FILE_VARIABLE: str(missing)})
    missing.write_text("no library")
    assert in_force(**{FILE_VARIABLE: str(missing)}).startswith("None it does not load: ")


@pytest.mark.parametrize("backend", ["auto", "torch", "triton", "native"])
@pytest.mark.parametrize("name", [VARIABLE, FILE_VARIABLE])
def test_no_model_is_loaded_where_the_environment_asks_for_what_there_is_not(
    monkeypatch: pytest.MonkeyPatch, backend: str, name: str
) -> None:
    """Whatever computes it: samplers and lookups have native functions of their own."""
    monkeypatch.setattr(module, "_load", module._load.__wrapped__)
    monkeypatch.setattr(native, "library", module.library.__wrapped__)
    monkeypatch.setenv(name, "/nothing/here")
    with pytest.raises(ConfigError, match=f"^{name} is "):
        KernelBackend.choose(backend, "cpu", "invariant")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is looked for; it is not there."""
    for variable in (VARIABLE, FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    return tmp_path


def refusal(find: Callable[[], object]) -> str:
    with pytest.raises(module._NoLibrary) as caught:
        find()
    return str(caught.value)


def test_a_library_that_was_not_compiled_is_no_error(package: Path) -> None:
    assert "not compiled when the package was installed" in refusal(module._file)


def test_in_a_checkout_a_library_of_other_sources_is_not_loaded(package: Path) -> None:
    file = package / building.library_name()
    file.write_bytes(b"pilotfish sources 0123456789abcdef")
    assert module._file() == file, "no checkout: what was installed with it is of one piece"
    (package / "hatch_build.py").touch()
    assert "other sources than there are now: run `make setup`" in refusal(module._file)
    file.write_bytes(f"pilotfish sources {building.digest()}".encode())
    assert module._file() == file


@needs_library
def test_a_function_that_is_not_there_is_named() -> None:
    native = library()
    assert native is not None
    with pytest.raises(AssertionError, match="no function 'no_such_kernel': build it again"):
        native.address("no_such_kernel")
    assert native.lib.pf_find(99, b"rms_norm") is None
    assert native.lib.pf_find(-1, b"rms_norm") is None
    assert native.lib.pf_has_instruction_set(99) == 0


@on_linux
@needs_library
@needs_compiler
@pytest.mark.parametrize(
    ("work", "num_threads", "expected"),
    [(SMALL_WORK - 1, 3, 1), (SMALL_WORK, 3, 3), (SMALL_WORK, 1, 1)],
)
def test_little_work_is_done_by_one_thread(work: int, num_threads: int, expected: int) -> None:
    native = library()
    assert native is not None
    probes = ctypes.CDLL(
        str(compiled_program("probes", ["probes.cpp"], options=["-shared", "-fPIC"]))
    )
    out, team_size = torch.zeros(NUM_ELEMENTS, dtype=torch.int64), ctypes.c_int32()
    args = Add(out.data_ptr(), NUM_ELEMENTS, 7, ctypes.addressof(team_size))
    before = torch.get_num_threads()
    address = ctypes.cast(probes.add, ctypes.c_void_p).value
    assert address is not None
    native.addresses["add"] = address
    torch.set_num_threads(num_threads)
    try:
        run("add", args, work)
    finally:
        torch.set_num_threads(before)
        del native.addresses["add"]
    assert team_size.value == expected
    assert set(out.tolist()) == {7}


@pytest.mark.slow
def test_without_native_kernels_the_demo_runs() -> None:
    command = ["-m", "pilotfish.cli", "generate", "demo", "--prompt", "One, two,"]
    done = subprocess.run(
        [sys.executable, *command, "--temperature", "0", "--max-tokens", "3", "--json"],
        env={**os.environ, VARIABLE: "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"finish_reason"' in done.stdout
