"""Weights of every kind that native code reads, beside the numbers that they stand for.

Knows: the `gguf` package's own dequantizer, which is the judge. Does not know: products.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch

from pilotfish.kernels.int4 import dequantize_int4, quantize_int4
from pilotfish.kernels.linear import PackedRows
from pilotfish.kernels.linear.native import KINDS

FLOAT_KINDS = ("float32", "bfloat16", "float16")
SCALES = {"q4_0": (0, 1), "q4_1": (0, 2), "q5_0": (0, 1), "q5_1": (0, 2), "q8_0": (0, 1)}
SCALES |= {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208, 1)}
"""Kind -> the byte where a block's half-precision numbers are, and how many."""


def widths(kind: str) -> tuple[int, ...]:
    """Odd ones where the kind allows: around 16 lanes, a chunk of 512, a block."""
    if kind in FLOAT_KINDS:
        return (1, 15, 72, 512, 577, 1100)
    if kind == "int4":
        return (8, 24, 40, 520, 1096)
    step = KINDS[kind][1]
    return (256, 768, 1280) if step == 256 else (32, 96, 512, 544, 1120)


def draw_rows(kind: str, outputs: int, width: int, seed: int) -> tuple[PackedRows, torch.Tensor]:
    """Returns the rows as a file has them and [O, K] float32 of what they mean."""
    torch.manual_seed(seed)
    if kind in FLOAT_KINDS:
        weight = (torch.randn(outputs, width) * width**-0.5).to(getattr(torch, kind))
        return PackedRows(weight, kind, width), weight.float()
    if kind == "int4":
        sizes = [size for size in (8, 24, 32, 40, 104) if width % size == 0]
        size = sizes[seed % len(sizes)]
        packed, scale = quantize_int4(torch.randn(outputs, width), group_size=size)
        scale = scale.to((torch.bfloat16, torch.float32, torch.float16)[seed % 3])
        numbers = dequantize_int4(packed, scale, torch.float32)
        return PackedRows(packed, kind, width, scale), numbers
    _, columns, num_bytes = KINDS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (outputs, width // columns, num_bytes), dtype=np.uint8)
    start, count = SCALES[kind]
    halves = (rng.standard_normal((*blocks.shape[:2], count)) * 0.02).astype(np.float16)
    blocks[..., start : start + 2 * count] = halves.view(np.uint8)
    rows = blocks.reshape(outputs, -1)
    numbers = gguf.quants.dequantize(rows, getattr(gguf.GGMLQuantizationType, kind.upper()))
    return PackedRows(torch.from_numpy(rows), kind, width), torch.from_numpy(numbers.copy())
