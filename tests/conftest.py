"""Shared set-up: options, hypothesis, Triton's interpreter without a GPU, one thread, Ctrl-C."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read with torch: tests share their cores

import pytest
import torch
from hypothesis import HealthCheck, settings

from pilotfish.kernels.strict import ask_for_strict_products

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
ask_for_strict_products()  # as an LLM does, and before any test multiplies
torch.set_num_threads(1)  # toy sizes: a second thread costs more than it gives

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's jobs in the background get none
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "pilotfish",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=50,
)
settings.load_profile("pilotfish")


def pytest_addoption(parser: pytest.Parser) -> None:
    soak = parser.getgroup("soak")
    soak.addoption("--histories", type=int, default=100, help="how many the soak test plays")
    soak.addoption("--first", type=int, default=0, help="the number of its first history")
