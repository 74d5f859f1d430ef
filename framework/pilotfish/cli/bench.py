"""`pilotfish bench`: speed and memory, beside other systems in the same run.

Knows: flags and output. Does not know: what is measured (see `pilotfish.bench`).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure speed and memory",
        description="Measure speed and memory on the CPU, beside other systems in the same run.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory, .gguf file, hub id, or 'demo'")
    parser.add_argument(
        "--against", default="", metavar="NAMES", help="peers, separated by commas: transformers"
    )
    parser.add_argument("--dtype", default="bfloat16", metavar="D", help="(bfloat16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each row (5)")
    parser.add_argument("--json", action="store_true", help="rows and machine as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.bench import run_suite

    report = run_suite(
        args.model,
        against=[name for name in args.against.split(",") if name],
        dtype=args.dtype,
        rounds=args.rounds,
        progress=lambda what: print(f"measuring: {what}", file=sys.stderr),
    )
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(report.to_markdown())
    return 0
