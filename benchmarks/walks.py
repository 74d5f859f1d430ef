"""How far one decode step walks: the files and functions that it passes, from step to token.

    python benchmarks/walks.py [MODEL] [--files]

Of one step of one greedy request over MODEL ("demo"): how many files of framework/ and plugins/ it
passes, and how many functions, comprehensions and generated ones too. --files lists them, in the
order of the first visit, with their functions. Counts only; no times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import attrs

from pilotfish import LLM, SamplingParams
from pilotfish.engine.engine import Engine
from pilotfish.models.decoder_model import DecoderModel

QUOTED = [5, 6, 7, 8] * 6
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
NUM_WARM, LOOKED_AT = 4, 8
"""Steps that are not looked at: the prompt's, and first ones; those that are."""
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "planned": (True, {}),
    "called": (False, {}),
    "ngram": (True, {"speculative": "ngram"}),
    "torch": (True, {"backend": "torch"}),
}
"""Whether passes are planned, and the LLM's options."""


@attrs.frozen
class Walk:
    """functions: (file, name), in the order of the first visit; generated ones in "<attrs ...>"."""

    functions: tuple[tuple[str, str], ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the repository, likewise; relative to the folder that holds the packages."""
        return tuple(dict.fromkeys(file for file, _ in self.functions if file.endswith(".py")))


def walk(model: str, way: str) -> Walk:
    """The longest of some decode steps, by functions."""
    is_planned, options = WAYS[way]
    before, DecoderModel.plans_passes = DecoderModel.plans_passes, is_planned
    try:
        with LLM(model, max_length=256, **options) as llm:
            llm.generate([QUOTED], GREEDY)
            with _listening() as steps:
                llm.generate([QUOTED], GREEDY)
    finally:
        DecoderModel.plans_passes = before
    return max(map(Walk, steps[NUM_WARM:LOOKED_AT]), key=lambda one: len(one.functions))


@contextmanager
def _listening() -> Iterator[list[tuple[tuple[str, str], ...]]]:
    """What each step passes while it is entered."""
    steps: list[tuple[tuple[str, str], ...]] = []
    real = Engine.step

    def step(self: Engine) -> Any:
        seen: dict[CodeType, tuple[str, str]] = {}

        def passes(frame: FrameType, event: str, argument: Any) -> None:
            code = frame.f_code
            if event == "call" and code not in seen:
                file = _file_of(code.co_filename)
                if file:
                    seen[code] = (file, code.co_qualname)

        sys.setprofile(passes)
        try:
            return real(self)
        finally:
            sys.setprofile(None)
            steps.append(tuple(seen.values()))

    Engine.step = step  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        Engine.step = real  # type: ignore[method-assign]


def _file_of(name: str) -> str:
    """A file of a package of ours, from that package on; what attrs generated; "" for others."""
    if name.startswith("<attrs generated") and "pilotfish" in name:
        return name
    parts = Path(name).parts
    own = [i for i, part in enumerate(parts) if part.startswith("pilotfish")]
    return "/".join(parts[own[-1] :]) if own and name.endswith(".py") else ""


def main() -> None:
    """Prints the counts of every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--files", action="store_true")
    args = parser.parse_args()
    print("| a decode step | files | functions |\n|---|---:|---:|")
    for way in WAYS:
        found = walk(args.model, way)
        print(f"| {way} | {len(found.files)} | {len(found.functions)} |")
        if args.files:
            for file in found.files:
                names = ", ".join(name for own, name in found.functions if own == file)
                print(f"  {file}: {names}")


if __name__ == "__main__":
    main()
