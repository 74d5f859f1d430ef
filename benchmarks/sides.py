"""What this checkout takes beside another one, of the same steps: user CPU time, tokens compared.

    python benchmarks/sides.py OTHER [--rounds 10] [--model demo] [--threads 1]

OTHER: a checkout with its native libraries built. Each round runs both, one after the other, in
processes of their own, the order changing; a figure is the minimum of its rounds, which neighbours
on the machine move least. Ratios are above 1 where this checkout takes less. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, resource, sys
from pilotfish import LLM, SamplingParams

def user(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    outputs = work()
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return seconds, [list(output.token_ids) for output in outputs]

def params(count):
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)

ids = [100 + i * 7919 % 20000 for i in range(512)]
prompts = [ids[start : start + 24] for start in range(0, 192, 24)]
found = {}

def measure(name, llm, work, forgets=True):
    best, tokens = float("inf"), None
    for _ in range(3):
        if forgets:
            llm.forget_cached_prefixes()
        seconds, tokens = user(work)
        best = min(best, seconds)
    found[name] = (best, tokens)

with LLM(sys.argv[1], max_length=1024) as llm:
    llm.generate(prompts, params(4))
    measure("decode, 1 request", llm, lambda: llm.generate(prompts[:1], params(64)))
    measure("decode, 8 requests", llm, lambda: llm.generate(prompts, params(32)))
    measure("prefill of 512 tokens", llm, lambda: llm.generate([ids], params(1)))
    llm.generate([ids], params(1))
    work = lambda: [one for i in range(8) for one in llm.generate([[*ids[:480], i]], params(1))]
    measure("cached prefix of 480 tokens, 8 times", llm, work, forgets=False)
with LLM(sys.argv[1], max_length=1024, speculative="ngram") as llm:
    quoting = [(ids[:16] * 6)[:90]]
    llm.generate(quoting, params(4))
    measure("n-gram drafts, quoting", llm, lambda: llm.generate(quoting, params(64)))
print(json.dumps(found))
"""


def run(checkout: Path, model: str, threads: int) -> dict[str, tuple[float, list[list[int]]]]:
    """Seconds and tokens of each piece of work, by a process that imports from a checkout."""
    folders = [checkout / "framework", *sorted((checkout / "plugins").iterdir())]
    settings = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", PROGRAM, model]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=True
    )
    found: dict[str, tuple[float, list[list[int]]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sides = {"this": HERE, "other": args.other.resolve()}
    best: dict[str, dict[str, float]] = {name: {} for name in sides}
    equal: dict[str, bool] = {}
    for number in range(args.rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        found = {name: run(sides[name], args.model, args.threads) for name in order}
        for work, (_, tokens) in found["this"].items():
            equal[work] = equal.get(work, True) and tokens == found["other"][work][1]
            for name in sides:
                seconds = found[name][work][0]
                best[name][work] = min(seconds, best[name].get(work, seconds))
    print("| what | this, s | other, s | ratio | tokens equal |\n|---|---:|---:|---:|---|")
    for work, said in equal.items():
        ours, theirs = best["this"][work], best["other"][work]
        print(f"| {work} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} | {said} |")


if __name__ == "__main__":
    main()
