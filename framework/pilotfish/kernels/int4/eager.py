"""INT4 weights unpacked by torch's own operations, the bytes taken two numbers at a time.

Knows: which order of passes over memory is quick. Does not know: Triton.
"""

from __future__ import annotations

import torch


def dequantize(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """packed: [..., O, K/8] int32; scale: [..., O, C]; returns [..., O, K], as the public function.

    Bytes of a little-endian word hold columns 2i (low half) and 2i + 1: passes over bytes cost
    half of passes over words. A product of a number of four bits and a scale of the same type is
    computed in float32 by torch, and rounded once.
    """
    if dtype not in (torch.float32, scale.dtype):
        return dequantize(packed, scale, torch.float32).to(dtype)
    octets = packed.contiguous().view(torch.uint8)
    numbers = torch.stack((octets & 15, octets >> 4), dim=-1).view(torch.int8).sub_(8)
    grouped = numbers.view(*scale.shape, -1).to(dtype)
    return grouped.mul_(scale.to(dtype).unsqueeze(-1)).view(*packed.shape[:-1], -1)
