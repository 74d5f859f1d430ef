"""What it costs to tell another rank of a step: the message of its inputs, written and read.

    python benchmarks/step_message.py [--requests 16] [--pages 64] [--rows 1]

Microseconds to encode and to decode a decode step's inputs, median of many, and the message's
bytes. --rows: of each request in the step. No model is loaded and no process is started.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch

from pilotfish.batch import RequestContext
from pilotfish.models.inputs import DecoderInputs, initial_inputs
from pilotfish.ranks.messages import Key, decode, encode
from pilotfish.state import PagedStateSpec, StateManager

NUM_TRIES = 2000
PAGE_SIZE = 16


def inputs_of(num_requests: int, num_pages: int, num_rows: int) -> DecoderInputs:
    """A step of so many requests with so many pages each."""
    spec = PagedStateSpec(name="kv", num_layers=16, row_shape=(2, 1, 1), dtype="bfloat16")
    state = StateManager([spec], num_pages=num_requests * num_pages, page_size_tokens=PAGE_SIZE)
    contexts = []
    for number in range(num_requests):
        name, committed = f"request-{number}", num_pages * PAGE_SIZE - num_rows
        state.claim(name)
        state.reserve(name, [0] * committed)
        state.commit(name, committed)
        state.reserve(name, [0] * num_rows)
        context = RequestContext(
            request_id=name, tokens=[1] * (committed + num_rows), num_prompt_tokens=committed
        )
        context.num_computed, context.num_scheduled = committed, num_rows
        contexts.append(context)
    names = [context.request_id for context in contexts]
    kv = state.kv_inputs(names, [num_rows] * num_requests)
    return initial_inputs(
        DecoderInputs, contexts, kv, [num_rows] * num_requests, device=torch.device("cpu")
    )


def microseconds(work: Callable[[], object]) -> float:
    """Median of many tries."""
    found = []
    for _ in range(NUM_TRIES):
        begun = perf_counter_ns()
        work()
        found.append(perf_counter_ns() - begun)
    return median(found) / 1000


def decoded(message: bytearray, known: Callable[[Key], Any]) -> list[tuple[Any, ...]]:
    """The arguments of all calls."""
    return [arguments() for _, arguments in decode(message, known)]


def main() -> None:
    """Measures one step's message and prints a line of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--pages", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    inputs = inputs_of(args.requests, args.pages, args.rows)
    kv = inputs.kv_cache_inputs
    assert kv is not None
    keys = {id(kv.blocks): "kv"}
    known: dict[Key, Any] = {"kv": kv.blocks}
    noted = [
        ("change", ("conv", act, (f"request-{i}", 1), None))
        for i in range(args.requests)
        for act in ("commit", "reserve")
    ]
    for what, calls in (("inputs", []), ("inputs, and a mirrored cache's calls", noted)):
        told: list[Any] = [*calls, ("execute", (inputs,))]
        message = bytearray(encode(told, keys))
        written = microseconds(partial(encode, told, keys))
        read = microseconds(partial(decoded, message, known.__getitem__))
        print(
            f"{what}: {len(message)} bytes, encode {written:.0f} us, decode {read:.0f} us, "
            f"together {written + read:.0f} us"
        )


if __name__ == "__main__":
    main()
