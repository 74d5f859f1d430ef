"""Every kernel gives the same bits on every instruction set, by every compiler; and no bad access.

The cases are those of cases.h; digests.py says how to add one, and when to write digests.txt.
"""

from __future__ import annotations

import pytest

from native.compiled import (
    compiled_library,
    compiled_program,
    library_file,
    needs_compiler,
    needs_programs,
    on_linux,
)
from native.digests import expected, run_driver
from pilotfish.kernels.native.building import INSTRUCTION_SETS, SOURCE, machine

pytestmark = [on_linux, needs_compiler]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_instruction_set_of_this_machine_gives_the_bits_of_the_file(num_threads: int) -> None:
    found = run_driver(compiled_program("driver", ["driver.cpp"]), library_file(), num_threads)
    assert found, "no instruction set of this library is here"
    assert found == dict.fromkeys(found, expected())


def test_every_kernel_has_a_case() -> None:
    lines = (SOURCE / "kernels.h").read_text().split("#define PF_KERNELS")[1].splitlines()
    kernels = [line.split("(")[1].split(")")[0] for line in lines if "PF_KERNEL(" in line]
    cases = (SOURCE.parents[4] / "tests/native/cases.h").read_text()
    assert kernels
    assert [name for name in kernels if f'c.run("{name}"' not in cases] == []


@needs_programs("aarch64-linux-gnu-g++", "qemu-aarch64")
def test_neon_gives_them_too() -> None:
    compiler, arm = ["aarch64-linux-gnu-g++"], "aarch64"
    library = compiled_library("neon", compiler, target_machine=arm)
    driver = compiled_program("driver-neon", ["driver.cpp"], compiler, target_machine=arm)
    found = run_driver(driver, library, 2, under=["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"])
    assert found == {"neon": expected()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler",
    [pytest.param(name, marks=needs_programs(name)) for name in ("g++", "clang++")],
)
def test_every_compiler_gives_them(compiler: str) -> None:
    driver = compiled_program("driver", ["driver.cpp"])
    found = run_driver(driver, compiled_library(compiler, [compiler]), 2)
    assert found == dict.fromkeys(found, expected())


@pytest.mark.slow
@needs_programs("g++")
def test_they_read_and_write_nothing_that_is_not_theirs() -> None:
    library = compiled_library("sanitized", ["g++"], options=["-O1", *SANITIZERS])
    driver = compiled_program("driver-sanitized", ["driver.cpp"], ["g++"], options=SANITIZERS)
    found = run_driver(driver, library, 2)
    assert set(found) <= set(INSTRUCTION_SETS[machine()])
    assert found == dict.fromkeys(found, expected())
