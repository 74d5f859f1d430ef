"""Benchmarks: what is run, against whom, and how it is timed. Nothing here is asserted in tests."""

from pilotfish.bench.report import BenchReport, BenchRow
from pilotfish.bench.speculation import run_speculation
from pilotfish.bench.suite import run_suite

__all__ = ["BenchReport", "BenchRow", "run_speculation", "run_suite"]
