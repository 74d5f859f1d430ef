"""Time of device work: the median of many runs, and what the device can do at best.

Knows: events, host clocks, copies, products. Does not know: kernels or models.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch


def median_s(run: Callable[[], object], device: str) -> float:
    """Seconds of one call: by device events with the cache flushed on a GPU, by the clock else."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=50, rep=200, return_mode="median")) / 1e3
    run()
    seconds = []
    for _ in range(5):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def copy_bandwidth(num_bytes: int, device: str) -> float:
    """Bytes a second, read plus written, of a copy from memory to memory of the device."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_s(lambda: target.copy_(source), device)


def product_rate(size: int, device: str) -> float:
    """Operations a second of a bfloat16 product of two random [size, size], by torch's library."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / median_s(lambda: a @ b, device)
