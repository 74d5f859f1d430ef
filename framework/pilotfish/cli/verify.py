"""`pilotfish verify`: the conformance kit, one line a promise.

Knows: how results are shown, and the exit code. Does not know: any promise.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotfish.cli.options import DTYPES, add_place_flags
from pilotfish.cli.parser import add_flag
from pilotfish.cli.speculation_flags import add_speculation_flags, speculative_config
from pilotfish.cli.verify_pace import Pace
from pilotfish.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pilotfish.testing import Result, Subject
    from pilotfish.testing.suite import Status

KEPT, BROKEN, NOT_KNOWN = 0, 1, 3


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="check the promises of an architecture or a checkpoint",
        description="Check every promise on tiny random checkpoints of an architecture, or on a "
        "checkpoint. Exit code 1 when one is broken, 3 when of one it is not known.",
        usage="pilotfish verify MODEL [flags]\n       pilotfish verify --architecture NAME [flags]",
        examples=(
            "pilotfish verify --architecture NAME",
            'pilotfish verify MODEL --promise "*prefix*" --dtype bfloat16',
            "pilotfish verify MODEL --speculative METHOD --draft DRAFT --promise drafts",
        ),
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint")
    add = partial(add_flag, parser.add_argument_group("what is checked"))
    add("--architecture", "tiny checkpoints of it (default: none; MODEL)", metavar="NAME")
    add(
        "--promise",
        'only this one; "*warm*": those that fit; "drafts": all about drafts; may be given several '
        "times (default: all)",
        action="append",
        default=[],
        metavar="NAME",
    )
    add(
        "--dtype",
        "only this one; may be given several times (default: the checkpoint's; of tiny ones "
        "float32 and bfloat16)",
        known=DTYPES,
        action="append",
        default=[],
    )
    add_place_flags(add)
    add(
        "--tensor-parallel",
        "ranks that share it in the promise about ranks (default: 2, and 4)",
        type=int,
        metavar="N",
    )
    group = parser.add_argument_group("what is printed")
    group.add_argument("--json", action="store_true", help="one object a promise")
    group.add_argument(
        "--list",
        action="store_true",
        help="list the promises, or with --architecture the config of each of its examples, and "
        "check none",
    )
    add_speculation_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from pilotfish.testing import PROMISES, check, promises_for, promises_named
    from pilotfish.testing.quiet import quiet

    if args.list and args.architecture is not None:
        with quiet(), _subjects(args) as subjects:
            for subject in subjects:
                print(f"{subject.name}: {_config_of(subject)}")
        return KEPT
    if args.list:
        for promise in PROMISES:
            print(f"{promise.name}: {promise.says}")
        return KEPT
    with_drafter = args.speculative is not None
    chosen = [promise for pattern in args.promise for promise in promises_named(pattern)]
    promises = list(dict.fromkeys(chosen)) or promises_for(with_drafter=with_drafter)
    about_drafts = [promise.name for promise in promises if promise.needs_drafter]
    if about_drafts and not with_drafter:
        raise UserError(
            f"the promise {about_drafts[0]!r} is about a drafter and none was given; wanted "
            "--speculative METHOD, and --draft D where the method reads one"
        )
    with suppress(OSError, ValueError):  # stderr may be no file
        faulthandler.enable()  # where a kernel of a plugin's crashes, it is told who called it
    counts: Counter[Status] = Counter()
    with quiet(), _subjects(args) as subjects:
        pace = Pace([one.name for one in promises], is_tiny=args.model is None)
        print(pace.before(), file=sys.stderr, flush=True)
        for promise in promises:
            with _announced(pace.begin(promise.name)):
                found = [check(promise, subject) for subject in subjects]
            print(_as_json(found) if args.json else _as_line(promise.name, found), flush=True)
            counts[_together(found)] += 1
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    code, verdict = _verdict(counts)
    print(f"{verdict}: {said}", file=sys.stderr)
    return code


def _config_of(subject: Subject) -> str:
    """What stands in its config.json: what the example says, and what it leaves at a default."""
    from pilotfish.weights.hf_config import CONFIG_FILE

    text = (Path(subject.model) / CONFIG_FILE).read_text()
    return json.dumps(json.loads(text), sort_keys=True)


def _verdict(counts: Mapping[Status, int]) -> tuple[int, str]:
    """The exit code, and what a run comes to. Nothing is kept of which nothing is known."""
    if counts.get("FAILED"):
        return BROKEN, "a promise is broken"
    if counts.get("not known"):
        return NOT_KNOWN, "no promise is broken, but not of all it is known that they are kept"
    if not counts.get("ok"):
        return NOT_KNOWN, "no promise says anything here"
    return KEPT, "every promise is kept"


@contextmanager
def _announced(text: str) -> Iterator[None]:
    """Says on stderr what is being checked, for whoever waits, or finds what a killed run left."""
    is_terminal = sys.stderr.isatty()
    print(text, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
    yield
    if is_terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _subjects(args: argparse.Namespace) -> Iterator[list[Subject]]:
    """What the flags say is to be checked. Raises UserError."""
    from pilotfish.plugins import load_registry
    from pilotfish.testing import Subject, tiny_subjects

    if (args.model is None) == (args.architecture is None):
        raise UserError("wanted MODEL or --architecture NAME, one of the two")
    where: dict[str, Any] = {"device": args.device, "backend": args.backend}
    where |= {"draft": args.draft, "speculative": speculative_config(args)}
    where["num_ranks"] = args.tensor_parallel
    if args.draft is not None and args.speculative is None:
        raise ConfigError("--draft was given without a method; wanted --speculative METHOD too")
    registry = load_registry()
    if args.architecture is not None:
        dtypes = tuple(args.dtype) or ("float32", "bfloat16")
        with tiny_subjects(args.architecture, registry, dtypes=dtypes, **where) as subjects:
            for subject in subjects:
                _check_draft_of_example(subject)
            yield subjects
        return
    dtypes = tuple(args.dtype) or ("auto",)
    subject = Subject(name=args.model, model=args.model, registry=registry, dtypes=dtypes, **where)
    with subject:
        subject.check_draft()
        resolved = [subject.prepared(dtype).dtype for dtype in dtypes]
        subject.dtypes = tuple(dict.fromkeys(resolved))
        yield [subject]


def _check_draft_of_example(subject: Subject) -> None:
    """Raises ConfigError for a drafter that does not fit a tiny example, and says what may."""
    try:
        subject.check_draft()
    except ConfigError as error:
        raise ConfigError(
            f"{error}; the target is the tiny example {subject.name!r}: `pilotfish verify MODEL` "
            "tests a draft on a checkpoint in its place"
        ) from error


def _as_line(name: str, results: Sequence[Result]) -> str:
    seconds = sum(result.seconds for result in results)
    status = _together(results)
    line = f"{status:<15}{name} ({seconds:.1f} s)"
    for result in results:
        if result.status != "ok" and (result.status, status) != ("not applicable", "ok"):
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


def _together(results: Sequence[Result]) -> Status:
    """The worst of them; not applicable only where it says nothing about any."""
    order: tuple[Status, ...] = ("FAILED", "not known", "ok", "not applicable")
    return min((result.status for result in results), key=order.index)
