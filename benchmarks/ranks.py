"""What ranks cost and give: one process beside two ranks, and slices beside none.

    python benchmarks/ranks.py MODEL [--ranks 2] [--slices 8] [--rounds 6] [--tokens 16]

MODEL: such as benchmarks/make_llama_1b.py writes. All runs are loaded at once and take turns, each
round in another order; a figure is the median of the rounds. One process has all threads, ranks
share them. Texts of equal slices are compared. Of the ranks' messages, those of decode steps are
timed where they are packed and, once more, unpacked. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from time import perf_counter
from typing import Any

from pilotfish import LLM, SamplingParams
from pilotfish.ranks import messages, ranks

IDS = [100 + i * 7919 % 20000 for i in range(512)]
START = (
    "import json, sys; from pilotfish import LLM; "
    "LLM(sys.argv[1], max_length=1024, **json.loads(sys.argv[2])).close()"
)


def steps(llm: LLM, num_tokens: int) -> tuple[float, float, list[int]]:
    """Seconds of a decode step, seconds of a prefill of 512, and the tokens."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    llm.forget_cached_prefixes()
    times = [perf_counter()]
    tokens: list[int] = []
    for delta in llm.stream(IDS[:24], params):
        tokens += delta.token_ids
        times.append(perf_counter())
    decode = statistics.median(b - a for a, b in pairwise(times[2:]))
    llm.forget_cached_prefixes()
    start = perf_counter()
    llm.generate([IDS], SamplingParams(temperature=0, max_tokens=1))
    return decode, perf_counter() - start, tokens


class Messages:
    """What is told to the other ranks in each pass: messages, and seconds to pack them."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, float]] = []
        ranks.encode = self.encode  # type: ignore[attr-defined]

    def encode(self, calls: Any, keys: Any = None) -> bytes:
        """As `messages.encode`."""
        start = perf_counter()
        made = messages.encode(calls, keys)
        self.found.append((made, perf_counter() - start))
        return made

    def __str__(self) -> str:
        size = statistics.median(len(made) for made, _ in self.found)
        packing = statistics.median(seconds for _, seconds in self.found)
        unpacking = statistics.median(_unpacked(made) for made, _ in self.found)
        times = f"packed in {1e6 * packing:.0f} us, unpacked in {1e6 * unpacking:.0f}"
        return f"{size:.0f} bytes, {times}"


def _unpacked(message: bytes) -> float:
    """Seconds."""
    start = perf_counter()
    for _, arguments in messages.decode(bytearray(message), lambda key: ()):
        arguments()
    return perf_counter() - start


def start_up(model: str, options: dict[str, Any]) -> float:
    """Seconds of a process that loads and ends."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", START, model, json.dumps(options)], check=True)
    return perf_counter() - start


def main() -> None:
    """Runs all, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args()
    if not 1 < args.ranks != args.slices > 1:
        parser.error("wanted two ranks or more, and another number of slices than of ranks")
    runs: dict[str, dict[str, Any]] = {
        "one process": {},
        f"one process, {args.ranks} slices": {"reduction_slices": args.ranks},
        f"one process, {args.slices} slices": {"reduction_slices": args.slices},
        f"{args.ranks} ranks": {"tensor_parallel": args.ranks},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    told = Messages()
    texts: dict[str, list[int]] = {}
    with ExitStack() as exits:
        made = {
            name: exits.enter_context(LLM(args.model, max_length=1024, **options))
            for name, options in runs.items()
        }
        for number in range(args.rounds + 1):
            order = list(made) if number % 2 else list(reversed(made))
            for name in order:
                decode, prefill, texts[name] = steps(made[name], args.tokens)
                if number:  # the first one warms up
                    found[name].append((decode, prefill))
    names = list(runs)
    assert texts[names[1]] == texts[names[3]], "ranks and slices of one number differ"
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in found.items()
    }
    starts = {name: start_up(args.model, runs[name]) for name in (names[0], names[3])}
    print("| run | decode, ms a step | ratio | prefill of 512, ms | ratio | start, s |")
    print("|---|---:|---:|---:|---:|---:|")
    base = medians[names[0]]
    for name, (decode, prefill) in medians.items():
        start = f"{starts[name]:.1f}" if name in starts else ""
        print(
            f"| {name} | {1000 * decode:.1f} | {base[0] / decode:.2f} | {1000 * prefill:.0f} "
            f"| {base[1] / prefill:.2f} | {start} |"
        )
    print(f"\nTokens of {names[1]} and {names[3]}: equal. A step's message: {told}.")


if __name__ == "__main__":
    main()
