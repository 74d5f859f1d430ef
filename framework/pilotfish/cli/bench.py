"""`pilotfish bench`: speed and memory, beside other systems in the same run.

Knows: flags and output. Does not know: what is measured (see `pilotfish.bench`).
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from pilotfish.cli.options import DTYPES, add_model
from pilotfish.cli.parser import UsageError, add_flag
from pilotfish.cli.rank_flags import add_parallel_flags, parallel_config
from pilotfish.cli.speculation_flags import add_speculation_flags, speculative_config
from pilotfish.config.parallel import ParallelConfig

if TYPE_CHECKING:
    from pilotfish.bench import BenchReport, BenchRow


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure speed and memory",
        description="Measure speed and memory on the CPU, beside other systems in the same run; "
        "with --speculative, a drafter beside our own plain decoding; with several ranks, those "
        "beside one process.",
        usage="pilotfish bench MODEL [flags]",
        examples=(
            "pilotfish bench demo --rounds 1 --prefill 64",
            "pilotfish bench demo --against transformers,llama.cpp",
            "pilotfish bench MODEL --speculative METHOD --draft DRAFT --markdown",
            "pilotfish bench MODEL --tensor-parallel 2",
        ),
    )
    add_model(parser)
    add = partial(add_flag, parser.add_argument_group("what is measured"))
    add(
        "--against",
        "peers, separated by commas: transformers, llama.cpp (for .gguf files; "
        "pip install llama-cpp-python) (default: none)",
        known=("transformers", "llama.cpp"),
        default="",
        metavar="NAMES",
    )
    add("--rounds", "rounds of each row (default: 5)", type=int, default=5, metavar="N")
    add(
        "--prefill",
        "lengths of prompts whose prefill is timed (default: 512)",
        default="512",
        metavar="N,N",
    )
    add(
        "--dtype",
        f"as generate takes it: one of {', '.join(DTYPES)} (default: auto)",
        known=DTYPES,
        default="auto",
    )
    group = parser.add_argument_group("what is printed")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="rows and machine as JSON, at the end")
    how.add_argument("--markdown", action="store_true", help="the table of docs/benchmarks")
    add_speculation_flags(parser)
    add_parallel_flags(parser, variable=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.bench import run_ranks, run_speculation, run_suite

    peers = [name for name in args.against.split(",") if name]
    speculative = speculative_config(args)
    shown = _Shown(args)
    common: dict[str, Any] = {"dtype": args.dtype, "rounds": args.rounds}
    common |= {"progress": _tell, "show": shown.row}
    parallel = parallel_config(args)
    if peers and (speculative is not None or parallel.num_processes > 1):
        other = "--speculative" if speculative is not None else "several ranks"
        raise UsageError(f"--against compares plain decoding; wanted no {other} with it")
    if parallel.num_processes > 1:
        if speculative is not None:
            raise UsageError("ranks are compared in plain decoding; wanted no --speculative")
        prefills = _lengths(args.prefill)
        report = run_ranks(args.model, parallel, prefills=prefills, **common)
    elif parallel != ParallelConfig():
        raise UsageError("one process has no ranks to compare; wanted --tensor-parallel 2")
    elif speculative is not None:
        report = run_speculation(args.model, speculative, draft=args.draft, **common)
    else:
        prefills = _lengths(args.prefill)
        report = run_suite(args.model, against=peers, prefills=prefills, **common)
    shown.end(report)
    return 0


class _Shown:
    """Prints rows as they are measured, so that a run that is killed has shown what it had."""

    def __init__(self, args: argparse.Namespace) -> None:
        from pilotfish.bench.table import BenchTable

        self._is_json, self._is_markdown = args.json, args.markdown
        self._is_first = True
        self._table = BenchTable(sys.stdout)

    def row(self, row: BenchRow) -> None:
        """One more."""
        from pilotfish.bench.report import MARKDOWN_HEAD, markdown_row

        if self._is_markdown:
            print(f"{MARKDOWN_HEAD}\n" * self._is_first + markdown_row(row))
        elif not self._is_json:
            self._table.show(row)
        self._is_first = False
        sys.stdout.flush()

    def end(self, report: BenchReport) -> None:
        """What stands below them."""
        if self._is_json:
            print(json.dumps(report.to_json(), indent=1))
        elif self._is_markdown:
            print(report.markdown_end())
        else:
            self._table.end(report)


def _tell(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr)


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--prefill is {text!r}; wanted whole numbers separated by commas"
        ) from error
