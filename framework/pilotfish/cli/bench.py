"""`pilotfish bench`: speed and memory, beside other systems in the same run.

Knows: flags and output. Does not know: what is measured (see `pilotfish.bench`).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pilotfish.cli.options import add_speculation_flags, speculative_config
from pilotfish.cli.parser import UsageError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure speed and memory",
        description="Measure speed and memory on the CPU, beside other systems in the same run; "
        "with --speculative, a drafter beside our own plain decoding.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory, .gguf file, hub id, or 'demo'")
    parser.add_argument(
        "--against",
        default="",
        metavar="NAMES",
        help="peers, separated by commas: transformers, llama.cpp (for .gguf files; "
        "pip install llama-cpp-python)",
    )
    add_speculation_flags(parser)
    parser.add_argument("--dtype", default="auto", metavar="D", help="as generate takes it (auto)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each row (5)")
    parser.add_argument(
        "--prefill",
        default="512",
        metavar="N,N",
        help="lengths of prompts whose prefill is timed (512)",
    )
    parser.add_argument("--json", action="store_true", help="rows and machine as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.bench import run_speculation, run_suite

    peers = [name for name in args.against.split(",") if name]
    speculative = speculative_config(args)
    if speculative is not None:
        if peers:
            raise UsageError("--against compares plain decoding; wanted no --speculative with it")
        report = run_speculation(
            args.model,
            speculative,
            draft=args.draft,
            dtype=args.dtype,
            rounds=args.rounds,
            progress=_tell,
        )
    else:
        report = run_suite(
            args.model,
            against=peers,
            dtype=args.dtype,
            rounds=args.rounds,
            prefills=_lengths(args.prefill),
            progress=_tell,
        )
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(report.to_markdown())
    return 0


def _tell(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr)


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--prefill is {text!r}; wanted whole numbers separated by commas"
        ) from error
