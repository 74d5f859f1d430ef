"""torch told to use instructions that the processor has not: refused before it ends the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pilotfish import load_registry
from pilotfish.errors import ConfigError
from pilotfish.kernels.backend import KernelBackend
from pilotfish.testing import tiny_subjects
from support.processors import aten_capability


def torch_takes(monkeypatch: pytest.MonkeyPatch, capability: str, *, has: bool) -> None:
    names = ("avx2", "fma3", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability.lower())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, has))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_what_the_processor_has_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    torch_takes(monkeypatch, capability, has=False)
    said = f"ATEN_CPU_CAPABILITY is {capability.lower()}, which this processor has not"
    with pytest.raises(ConfigError, match=said):
        KernelBackend.choose("torch", "cpu", "fastest")
    with (
        pytest.raises(ConfigError, match=said),
        tiny_subjects("OlmoForCausalLM", load_registry()),
    ):
        pass


@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT", "SVE256"])
def test_what_it_has_is_taken(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    torch_takes(monkeypatch, capability, has=capability.startswith("AVX"))
    assert KernelBackend.choose("torch", "cpu", "fastest").name == "torch"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect demo", "verify --architecture OlmoForCausalLM"])
def test_a_command_says_so_in_a_line(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pilotfish", *command.split()],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx512"},
        capture_output=True,
        text=True,
        check=False,
    )
    if aten_capability("avx512") == "avx512":
        assert done.returncode == 0, done.stderr
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pilotfish: error: ATEN_CPU_CAPABILITY is avx512")
        assert done.stderr.count("\n") == 1
