"""`pilotfish verify`: the conformance kit, one line a promise.

Knows: how results are shown, and the exit code. Does not know: any promise.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pilotfish.cli.options import add_speculation_flags, speculative_config
from pilotfish.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pilotfish.testing import Result, Subject

KEPT, BROKEN = 0, 1


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="check the promises of an architecture or a checkpoint",
        description="Check every promise on tiny random checkpoints of an architecture, or on a "
        "checkpoint. Exit code 1 when one is broken.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint")
    parser.add_argument("--architecture", metavar="NAME", help="tiny checkpoints of it")
    parser.add_argument("--promise", action="append", default=[], metavar="P", help="only this one")
    parser.add_argument("--list", action="store_true", help="list the promises and check none")
    add_speculation_flags(parser)
    parser.add_argument("--dtype", action="append", default=[], metavar="D", help="only this one")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "--backend", default="auto", metavar="B", help="auto, torch, native, triton"
    )
    parser.add_argument("--json", action="store_true", help="one object a promise")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.testing import PROMISES, promise_named, promises_for
    from pilotfish.testing import run as check_all
    from pilotfish.testing.oracle import quiet

    if args.list:
        for promise in PROMISES:
            print(f"{promise.name}: {promise.says}")
        return KEPT
    promises = [promise_named(name) for name in args.promise] or promises_for(
        with_drafter=args.speculative is not None
    )
    with suppress(OSError, ValueError):  # stderr may be no file
        faulthandler.enable()  # where a kernel of a plugin's crashes, it is told who called it
    worst, counts = KEPT, Counter[str]()
    with quiet(), _subjects(args) as subjects:
        for name, results in groupby(check_all(subjects, promises), lambda r: r.promise):
            found = list(results)
            print(_as_json(found) if args.json else _as_line(name, found), flush=True)
            worst = max(worst, *(BROKEN if r.status == "FAILED" else KEPT for r in found))
            counts[_together(found)] += 1
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    verdict = "a promise is broken" if worst else "every promise is kept"
    print(f"{verdict}: {said}", file=sys.stderr)
    return worst


@contextmanager
def _subjects(args: argparse.Namespace) -> Iterator[list[Subject]]:
    """What the flags say is to be checked. Raises UserError."""
    from pilotfish.plugins import load_registry
    from pilotfish.testing import Subject, tiny_subjects

    if (args.model is None) == (args.architecture is None):
        raise UserError("wanted MODEL or --architecture NAME, one of the two")
    where: dict[str, Any] = {"device": args.device, "backend": args.backend}
    where |= {"draft": args.draft, "speculative": speculative_config(args)}
    if args.draft is not None and args.speculative is None:
        raise ConfigError("--draft was given without a method; wanted --speculative METHOD too")
    registry = load_registry()
    if args.architecture is not None:
        dtypes = tuple(args.dtype) or ("float32", "bfloat16")
        with tiny_subjects(args.architecture, registry, dtypes=dtypes, **where) as subjects:
            for subject in subjects:
                subject.check_draft()
            yield subjects
        return
    dtypes = tuple(args.dtype) or ("auto",)
    subject = Subject(name=args.model, model=args.model, registry=registry, dtypes=dtypes, **where)
    with subject:
        subject.check_draft()
        resolved = [subject.prepared(dtype).dtype for dtype in dtypes]
        subject.dtypes = tuple(dict.fromkeys(resolved))
        yield [subject]


def _as_line(name: str, results: Sequence[Result]) -> str:
    seconds = sum(result.seconds for result in results)
    status = _together(results)
    line = f"{status:<15}{name} ({seconds:.1f} s)"
    for result in results:
        if result.status != "ok" and status in (result.status, "FAILED"):
            line += f"\n{'':<15}{result.subject}: {result.said}"
    return line


def _as_json(results: Sequence[Result]) -> str:
    return json.dumps(
        {
            "promise": results[0].promise,
            "status": _together(results),
            "seconds": round(sum(result.seconds for result in results), 3),
            "subjects": [
                {"subject": r.subject, "status": r.status, "said": r.said} for r in results
            ],
        }
    )


def _together(results: Sequence[Result]) -> str:
    """FAILED when it failed once, ok when it held once, else not applicable."""
    found = {result.status for result in results}
    return next(status for status in ("FAILED", "ok", "not applicable") if status in found)
