"""What a DFlash block costs beside a pass of its target.

    python benchmarks/dflash_block_share.py TARGET DRAFT_DIR [--threads 2]

Prints medians over the steps of one request: the target's pass over one token (plain decoding), one
block of the draft with the head and the choice of its tokens, and taking in the rows of a block
that was accepted whole; the last two as shares of the first. Then decoding as a whole, where half
of all drafts are accepted whatever they are, beside plain decoding; and whether the text is plain
decoding's where they are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

from pilotfish import LLM, SamplingParams, SpeculativeConfig

TOKENS = 120
PROMPT = list(range(100, 140))


def timed(owner: Any, name: str) -> list[float]:
    """Seconds of every later call of a method."""
    real: Callable[..., Any] = getattr(owner, name)
    found: list[float] = []

    def call(*args: Any, **options: Any) -> Any:
        start = perf_counter()
        try:
            return real(*args, **options)
        finally:
            found.append(perf_counter() - start)

    setattr(owner, name, call)
    return found


def whole(target: str, draft: str, plain: LLM) -> None:
    """Tokens a second with half of the drafts accepted, over plain decoding's; and real texts."""
    params = SamplingParams(temperature=0, max_tokens=97, ignore_eos=True)
    half = SpeculativeConfig(method="dflash", width=7, acceptance="synthetic", synthetic_rate=0.5)
    real = SpeculativeConfig(method="dflash", width=7)
    ours, coupled = (
        LLM(target, draft=draft, speculative=one, dtype="bfloat16", device="cpu")
        for one in (half, real)
    )
    ratios = []
    for _ in range(4):
        [theirs] = plain.generate([PROMPT], params, progress=False)
        [found] = ours.generate([PROMPT], params, progress=False)
        ratios.append(theirs.timing.decode_s / found.timing.decode_s)
    [text] = coupled.generate([PROMPT], params, progress=False)
    print(f"decoding, half accepted: {median(ratios):8.2f} x plain")
    print(f"coupled, tokens equal:   {text.token_ids == theirs.token_ids!s:>8}")


def main(target: str, draft: str) -> None:
    """Alternates plain and drafted answers, so that a busy machine slows both."""
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    plain = LLM(target, dtype="bfloat16", device="cpu")
    every = SpeculativeConfig(method="dflash", width=7, acceptance="synthetic", synthetic_rate=1.0)
    ours = LLM(target, draft=draft, speculative=every, dtype="bfloat16", device="cpu")
    passes = timed(plain.engine.runner.model, "execute")
    proposer: Any = ours.proposer
    parts = {name: timed(proposer, name) for name in ("take_in", "forward", "_choose")}
    verify = timed(ours.engine.runner.model, "execute")
    for _ in range(4):
        plain.generate([PROMPT], params, progress=False)
        ours.generate([PROMPT], params, progress=False)
    one = median(passes)
    block = median(parts["forward"]) + median(parts["_choose"])
    print(f"threads {torch.get_num_threads()}")
    print(f"target, one token:       {one * 1e3:8.3f} ms")
    print(f"target, eight rows:      {median(verify) * 1e3:8.3f} ms  {median(verify) / one:.3f}")
    print(f"block, 7 proposals:      {block * 1e3:8.3f} ms  {block / one:.3f}")
    print(f"  of it choosing:        {median(parts['_choose']) * 1e3:8.3f} ms")
    taken = median(parts["take_in"])
    print(f"taking in 8 rows:        {taken * 1e3:8.3f} ms  {taken / one:.3f}")
    whole(target, draft, plain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", metavar="TARGET", help="directory, .gguf file or 'demo'")
    parser.add_argument("draft", metavar="DRAFT_DIR")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    main(arguments.target, arguments.draft)
