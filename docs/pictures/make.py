"""Makes the pictures of the documentation: `python docs/pictures/make.py [NAME ...] [--check]`.

Knows: which pictures there are, and where they lie. Does not know: what is on them.
`chat` runs the demo model and needs the packages of `.[dev]`. With --check nothing is written:
names of pictures that are not what would be made, and exit code 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import pairs
import ratios
import request_life
import split_block

from pilotfish.plugins import load_registry

FOLDER = Path(__file__).resolve().parent
BENCHMARKS = FOLDER.parent / "benchmarks" / "cpu.md"


def chat() -> str:
    """A recording; what it needs is imported for it alone."""
    import recording

    return recording.draw(recording.record())


PICTURES: Mapping[str, Callable[[], str]] = {
    "benchmarks": lambda: ratios.draw(BENCHMARKS.read_text(encoding="utf-8")),
    "chat": chat,
    "life-of-a-request": request_life.draw,
    "plugins": lambda: pairs.draw(pairs.of_the_house(load_registry({}))),
    "ranks": split_block.draw,
}


def main() -> int:
    """Makes or checks; 1 where a file is not what would be made."""
    parser = argparse.ArgumentParser(description="Makes the pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--check", action="store_true", help="compare with the files")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in PICTURES]:
        parser.error(f"no picture {unknown[0]!r}; wanted one of {', '.join(PICTURES)}")
    wrong = False
    for name in args.names or PICTURES:
        made, file = PICTURES[name]().encode(), FOLDER / f"{name}.svg"
        if not args.check:
            file.write_bytes(made)
        elif not file.exists() or file.read_bytes() != made:
            wrong = True
            print(f"{file}: not what is made today; run: python docs/pictures/make.py {name}")
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
