"""Benchmarks: what is run, against whom, and how it is timed. Nothing here is asserted in tests.

The names are resolved on first use: the process of a peer that needs no torch has none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.bench.report import BenchReport, BenchRow
    from pilotfish.bench.speculation import run_speculation
    from pilotfish.bench.suite import run_suite

_HOMES = {
    "BenchReport": "report",
    "BenchRow": "report",
    "run_speculation": "speculation",
    "run_suite": "suite",
}

__all__ = ["BenchReport", "BenchRow", "run_speculation", "run_suite"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
