"""What planning a pass saves: a decode step as one native call, and with layers called one by one.

    python benchmarks/planned_passes.py MODEL [--requests 1] [--tokens 33] [--threads 1]

Both in one process, in alternating rounds, with the same tokens or it fails. Medians of CPU time,
so that a busy machine disturbs them least. MODEL: a directory, a .gguf file or 'demo'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from pilotfish import LLM, SamplingParams
from pilotfish.models.decoder_model import DecoderModel

ROUNDS = 7
PLANNED: Callable[..., Any] = DecoderModel._planned
WAYS = {"planned": PLANNED, "layer by layer": lambda model, run: None}


def decode_ms(llm: LLM, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[Any]]:
    """CPU milliseconds of a step after the first, and the tokens."""
    spent, outputs = [], []
    for count in (1, num_tokens):
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        start = time.process_time()
        outputs = llm.generate(prompts, params)
        spent.append(1e3 * (time.process_time() - start))
    return (spent[1] - spent[0]) / (num_tokens - 1), [list(one.token_ids) for one in outputs]


def main() -> None:
    """Prints a median for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llm = LLM(options.model, max_length=512)
    prompts = [
        [(7 * i * i + 31 * b) % 900 + 18 for i in range(24)] for b in range(options.requests)
    ]
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    wanted: list[Any] | None = None
    for number in range(ROUNDS + 1):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            DecoderModel._planned = WAYS[way]  # type: ignore[method-assign]
            ms, tokens = decode_ms(llm, prompts, options.tokens)
            wanted = wanted or tokens
            assert tokens == wanted, f"{way}: other tokens"
            if number:  # the first round plans, and reads weights
                spent[way].append(ms)
    for way, found in spent.items():
        print(f"{way}: {median(found):.2f} ms of CPU time a decode step")


if __name__ == "__main__":
    main()
