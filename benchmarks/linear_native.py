"""Native linear beside torch's: products of one decode step, and of many rows.

Usage: python benchmarks/linear_native.py [--kind q4_1] [--shapes 960x576,2048x2048] [--rows 1,8]
CPU time of one thread, smallest of alternating rounds, so that a busy machine disturbs it least;
torch multiplies float32 weights, plain and packed by oneDNN.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from pilotfish.kernels.linear import LinearWeight, PackedRows, eager, native, prepare_blocks
from pilotfish.kernels.native import library

# Body of a 135M model: qkv, out, gate_up, down; O x K.
SHAPES = "960x576,576x576,3072x576,576x1536"


def draw(kind: str, outputs: int, width: int) -> LinearWeight:
    """Random numbers are as slow to multiply as any, if none is NaN."""
    _, columns, num_bytes = native.KINDS[kind]
    if kind in ("float32", "bfloat16", "float16"):
        return native.prepare(torch.randn(outputs, width).to(getattr(torch, kind)), None)
    if kind == "int4":
        packed = torch.randint(-(2**31), 2**31 - 1, (outputs, width // 8)).to(torch.int32)
        return native.prepare_int4(packed, torch.rand(outputs, width // 32), torch.float32)
    blocks = torch.randint(0, 256, (outputs, width // columns, num_bytes)).to(torch.uint8)
    half = torch.tensor([0.01, 0.02], dtype=torch.float16).view(torch.uint8)
    start = 208 if kind == "q6_k" else 0
    count = 4 if kind in ("q4_1", "q5_1", "q4_k", "q5_k") else 2
    blocks[..., start : start + count] = half[:count]
    rows = PackedRows(blocks.view(outputs, -1), kind, width)
    return prepare_blocks([rows], dtype=torch.float32)


def best_of(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Smallest CPU time of each, by turns."""
    best = dict.fromkeys(calls, float("inf"))
    end, rounds = time.time() + seconds, 0
    while rounds < 3 or time.time() < end:
        for name, call in calls.items():
            start = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - start)
        rounds += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="q4_1", choices=list(native.KINDS))
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rows", default="1,8,64,512")
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    found = library()
    assert found is not None
    torch.set_num_threads(1)
    print(f"| {options.kind}, {found.instruction_set} | rows | native us | F.linear | packed |")
    print("| --- | --- | --- | --- | --- |")
    for shape in options.shapes.split(","):
        outputs, width = map(int, shape.split("x"))
        weight, plain = draw(options.kind, outputs, width), torch.randn(outputs, width)
        packed = eager.prepare(plain, None, keep_plain=False)
        for rows in map(int, options.rows.split(",")):
            x = torch.randn(rows, width)
            calls: dict[str, Callable[[], object]] = {
                "native": lambda x=x, w=weight: native.linear(x, w),
                "F.linear": lambda x=x, w=plain: torch.nn.functional.linear(x, w),
                "packed": lambda x=x, w=packed: eager.linear(x, w),
            }
            best = best_of(calls, options.seconds)
            print(
                f"| {shape} | {rows} | " + " | ".join(f"{t * 1e6:.0f}" for t in best.values()), "|"
            )


if __name__ == "__main__":
    main()
