"""What requests cost that share a beginning, or come from several threads.

    python benchmarks/together.py MODEL [--rounds 5]

Prints medians of alternating rounds: four prompts of 242 tokens that differ in the last, together,
beside one of them and three passes of one row; and four threads, or four coroutines, beside one
call of the same four prompts. Tokens are compared in every round. Then, counted, not timed: the
rows that 64 requests over one beginning of 512 tokens compute, beside one beginning and the rests.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter
from typing import Any

from pilotfish import LLM, SamplingParams

BEGINNING = [100 + i * 7919 % 20000 for i in range(512)]
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
MANY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
SHORT = [BEGINNING[start : start + 12] for start in (0, 20, 40, 60)]


def timed(llm: LLM, work: Callable[[], list[Any]]) -> tuple[float, list[list[int]]]:
    """Seconds and tokens, from an empty prefix cache."""
    llm.forget_cached_prefixes()
    start = perf_counter()
    outputs = work()
    return perf_counter() - start, [list(output.token_ids) for output in outputs]


def threads(llm: LLM) -> list[Any]:
    """Four threads, each with a prompt of its own."""
    with ThreadPoolExecutor(4) as pool:
        return [output for (output,) in pool.map(lambda p: llm.generate(p, MANY), SHORT)]


def coroutines(llm: LLM) -> list[Any]:
    """Four coroutines likewise."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*(llm.agenerate(prompt, MANY) for prompt in SHORT))

    return [output for (output,) in asyncio.run(ask())]


def rows_of(llm: LLM, prompts: list[list[int]]) -> int:
    """Rows that a call computes."""
    runner, count = llm.engine.runner, 0
    real = runner.compute

    def compute(batch: Any) -> Any:
        nonlocal count
        count += sum(request.num_scheduled for request in batch)
        return real(batch)

    llm.forget_cached_prefixes()
    runner.compute = compute  # type: ignore[method-assign]
    llm.generate(prompts, ONE)
    del runner.compute
    return count


def main() -> None:
    """Prints it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    prompts = [[*BEGINNING[:241], 50 + i] for i in range(4)]
    with LLM(options.model) as llm:
        together, alone, single, ratios = [], [], [], {"threads": [], "coroutines": []}
        for _ in range(options.rounds):
            seconds, found = timed(llm, lambda: llm.generate(prompts, ONE))
            together.append(seconds)
            seconds, (first,) = timed(llm, lambda: llm.generate(prompts[0], ONE))
            alone.append(seconds)
            rest: list[list[int]] = []
            for prompt in prompts[1:]:
                start = perf_counter()
                (output,) = llm.generate(prompt, ONE)
                single.append(perf_counter() - start)
                rest.append(list(output.token_ids))
            assert found == [first, *rest], "tokens differ"
            seconds, wanted = timed(llm, lambda: llm.generate(SHORT, MANY))
            for name, ask in (("threads", threads), ("coroutines", coroutines)):
                other, found = timed(llm, lambda ask=ask: ask(llm))  # type: ignore[misc]
                assert found == wanted, "tokens differ"
                ratios[name].append(other / seconds)
        one = median(alone) + 3 * median(single)
        print(f"four prompts with 241 of 242 tokens in common: {median(together):.3f} s together;")
        print(f"  {one:.3f} s one and three single tokens; ratio {median(together) / one:.2f}")
        for name, found_ratios in ratios.items():
            print(f"four {name}: {median(found_ratios):.2f} of the time of one call")
        rests = [[*BEGINNING, 50 + i, 60 + i, 70 + i] for i in range(64)]
        count = rows_of(llm, rests)
        ideal = 512 + 3 * 64
        print(f"64 requests over 512 tokens: {count} rows; one beginning and the rests {ideal}")


if __name__ == "__main__":
    main()
