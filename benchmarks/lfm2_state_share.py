"""The share of an LFM2 decode step that handling convolution state takes.

    python benchmarks/lfm2_state_share.py MODEL_DIR

State handling: the cache's bookkeeping (reserve, inputs, keep, commit), and inside the kernel the
writing of the newest columns and the gathering of the window. The rest of the convolution is
arithmetic. Prints percent of the wall time of decoding, for 1 and 8 requests.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from pilotfish import LLM, SamplingParams
from pilotfish_lfm2.cache import ConvStateCache

NUM_TOKENS = 64
seconds: Counter[str] = Counter()


def timed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, with the time it takes added up under a name."""

    def call(*args: Any, **options: Any) -> Any:
        start = perf_counter()
        try:
            return real(*args, **options)
        finally:
            seconds[name] += perf_counter() - start

    return call


def main(model: str) -> None:
    """Decodes, with the cache's methods and the kernel's two copies timed."""
    for name in ("inputs", "commit", "reserve", "keep"):
        setattr(ConvStateCache, name, timed(name, getattr(ConvStateCache, name)))
    llm = LLM(model, dtype="bfloat16", device="cpu")
    for num_requests in (1, 8):
        generator = torch.Generator().manual_seed(num_requests)
        ids = torch.randint(1000, llm.vocab_size, (num_requests, 8), generator=generator).tolist()
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        llm.generate(ids, params)
        seconds.clear()
        start = perf_counter()
        llm.generate(ids, params)
        whole = perf_counter() - start
        share = 100 * sum(seconds.values()) / whole
        parts = ", ".join(f"{name} {100 * s / whole:.2f}" for name, s in seconds.most_common())
        copies = 100 * copy_seconds(llm, num_requests) * NUM_TOKENS / whole
        print(
            f"{num_requests} requests: bookkeeping {share:.2f} % ({parts}), copies {copies:.2f} %"
        )


def copy_seconds(llm: LLM, num_requests: int) -> float:
    """Seconds that all layers' two copies take in one step, timed on memory of their shapes."""
    (spec,) = (spec for spec in llm.engine.runner.model.state if spec.name == "conv")
    width, columns = spec.slot_shape[-1], 3
    memory = torch.zeros(num_requests * 40, width, dtype=torch.bfloat16)
    own = torch.arange(num_requests) * 40
    window = (own[:, None] + torch.arange(columns)).view(-1)
    newest = torch.ones(num_requests, width, dtype=torch.bfloat16)
    rounds = 200
    start = perf_counter()
    for _ in range(rounds):
        memory.index_copy_(0, own, newest)
        memory.index_select(0, window)
    return (perf_counter() - start) / rounds * int(spec.num_layers)


if __name__ == "__main__":
    main(sys.argv[1])
