"""Benchmarks: what is run, against whom, and how it is timed. Nothing here is asserted in tests.

The names are resolved on first use: the process of a peer that needs no torch has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names

if TYPE_CHECKING:
    from pilotfish.bench.ranks import run_ranks
    from pilotfish.bench.report import BenchReport, BenchRow
    from pilotfish.bench.speculation import run_speculation
    from pilotfish.bench.suite import run_suite

_HOMES = {
    "BenchReport": "report",
    "BenchRow": "report",
    "run_ranks": "ranks",
    "run_speculation": "speculation",
    "run_suite": "suite",
}

__all__ = ["BenchReport", "BenchRow", "run_ranks", "run_speculation", "run_suite"]

__getattr__ = lazy_names(__name__, _HOMES)
