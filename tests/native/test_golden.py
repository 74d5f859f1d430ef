"""Whole models give the same bits with any instruction set, threads, and setting of torch's.

Each setting is a process of its own, since libraries read theirs once. golden.py says what counts.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping

import attrs
import pytest

from kernels.native_cases import needs_library
from native import golden
from native.golden_checkpoints import checkpoints
from pilotfish.kernels.native.building import INSTRUCTION_SETS, machine
from pilotfish.kernels.native.library import VARIABLE
from support.processors import aten_capability

pytestmark = needs_library

SETS = tuple(INSTRUCTION_SETS.get(machine(), ("none",)))
MKL = ("AVX2", "AVX512")
ONEDNN = ("AVX2", "AVX512_CORE", "ALL")
ATEN = ("default", "avx2", "avx512")
THREADS = (1, 2, 3, 8)


@attrs.frozen
class Setting:
    """threads, the best instruction set of native kernels, and what torch's libraries are told."""

    threads: int
    instructions: str
    torchs: Mapping[str, str] = attrs.field(factory=dict, hash=False)

    def __str__(self) -> str:
        told = ",".join(self.torchs.values())
        return f"{self.instructions}-{self.threads}{'-' if told else ''}{told}"


def cover() -> list[Setting]:
    """Every two values of two variables stand together somewhere."""
    found = []
    for t, threads in enumerate(THREADS):
        for p in range(3):
            torchs = {
                "MKL_ENABLE_INSTRUCTIONS": MKL[(t + (p == 1)) % 2],
                "ONEDNN_MAX_CPU_ISA": ONEDNN[(p + t) % 3],
                "ATEN_CPU_CAPABILITY": ATEN[(2 * p + t) % 3],
            }
            found.append(Setting(threads, SETS[p % len(SETS)], torchs))
    return found


def computed(setting: Setting, dtype: str = "") -> dict[str, str]:
    """Case -> digest, in a process with this setting. Warns where the processor has less."""
    threads = str(setting.threads)
    done = subprocess.run(
        [sys.executable, golden.__file__, checkpoints(), threads, dtype],
        env={
            **os.environ,
            **{
                name: aten_capability(value) if name == "ATEN_CPU_CAPABILITY" else value
                for name, value in setting.torchs.items()
            },
            **{VARIABLE: setting.instructions, "OMP_NUM_THREADS": threads},
            "OMP_WAIT_POLICY": "passive",  # there may be fewer cores than threads
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    used, used_threads = first.split()
    assert used_threads == threads
    if used != setting.instructions:
        warnings.warn(
            f"this processor has no {setting.instructions}: models were checked with {used}",
            stacklevel=2,
        )
    return dict(line.rsplit(" ", 1) for line in lines)


def check(setting: Setting, dtype: str = "") -> None:
    """Names the cases that differ from golden.txt."""
    found, wanted = computed(setting, dtype), golden.expected()
    names = [case.name for case in golden.cases(checkpoints(), dtype)]
    assert list(found) == names
    assert [name for name in names if found[name] != wanted.get(name)] == []


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [
        (Setting(2, SETS[0]), "float32"),
        pytest.param(Setting(3, SETS[:2][-1]), "bfloat16", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_models_give_the_bits_of_the_file(setting: Setting, dtype: str) -> None:
    check(setting, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("setting", cover(), ids=str)
def test_they_do_whatever_torchs_libraries_are_told(setting: Setting) -> None:
    check(setting)


def test_the_settings_cover_every_pair() -> None:
    rows = [(s.threads, s.instructions, *s.torchs.values()) for s in cover()]
    values = (THREADS, SETS, MKL, ONEDNN, ATEN)
    for (i, left), (j, right) in itertools.combinations(enumerate(values), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(left, right)), (i, j)


def test_every_architecture_and_kind_has_a_case() -> None:
    """The file's cases are those of today, in order."""
    assert list(golden.expected()) == [case.name for case in golden.cases(checkpoints())]
