"""Numbers from integers: a place and a name, mixed, and a power of two. No generator of anybody's.

Knows: the formula. Does not know: what the numbers are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch


def mixed(name: str, count: int) -> npt.NDArray[np.uint32]:
    """[count] numbers of 32 bits: the finalizer of MurmurHash3 over place and name."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(crc32(name.encode()))
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return x ^ x >> np.uint32(16)


def signed(name: str, count: int, most: int) -> npt.NDArray[np.int64]:
    """[count] whole numbers from -most to most."""
    return (mixed(name, count) >> np.uint32(8)).astype(np.int64) % (2 * most + 1) - most


def by_formula(name: str, shape: Sequence[int]) -> torch.Tensor:
    """float32, exact in bfloat16 and float16: rows of about norm 1, biases small, norms near 1."""
    count = int(np.prod(shape))
    if len(shape) > 1:
        power = 6 + (int(shape[-1]).bit_length() + 1) // 2
        numbers = signed(name, count, 127) * 2.0**-power
        numbers *= 2 if name == "lm_head.weight" else 1
    elif name.endswith("bias"):
        numbers = signed(name, count, 63) * 2.0**-8
    else:
        numbers = 1 + signed(name, count, 31) * 2.0**-7
    return torch.from_numpy(numbers.astype(np.float32)).view(tuple(shape))
