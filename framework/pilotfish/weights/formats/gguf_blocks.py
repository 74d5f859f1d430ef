"""How the tensor types of a GGUF file pack numbers, and how they are unpacked to float32.

Knows: blocks of bytes. Does not know: files or names. The layouts are those of the GGML format; the
arithmetic is float32, in the order of the `gguf` package's own reference, so the bits are equal.
Letters: b blocks of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import torch

_CHUNK_NUMBERS = 1 << 15
"""Numbers unpacked at once: they stay in the cache, and so few are not worth a second thread, whose
barriers would cost more than the work where cores are shared."""


@attrs.frozen
class BlockType:
    """A tensor type: `num_bytes` bytes hold `size` numbers.

    unpack: reads [b, num_bytes] uint8 and fills [b, size] float32; None for a plain number, named
        by `dtype`.
    """

    name: str
    size: int
    num_bytes: int
    unpack: Callable[[torch.Tensor, torch.Tensor], object] | None = None
    dtype: str = "float32"


def dequantize(data: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """Unpacks a whole tensor: [n * num_bytes] uint8 -> [n * size] of `kind.dtype`.

    Plain numbers are a view of `data`; packed ones are new memory.
    """
    import torch

    if kind.unpack is None:
        dtype: torch.dtype = getattr(torch, kind.dtype)
        return data.view(dtype)
    blocks = data.view(-1, kind.num_bytes)
    out = torch.empty(blocks.shape[0], kind.size, dtype=torch.float32)
    step = _CHUNK_NUMBERS // kind.size
    for start in range(0, blocks.shape[0], step):
        kind.unpack(blocks[start : start + step], out[start : start + step])
    return out.view(-1)


def _halves(blocks: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """[b, count] float32 from float16 numbers at a byte offset of each block."""
    import torch

    part = blocks[:, start : start + 2 * count].contiguous()
    return part.view(torch.float16).to(torch.float32)


def _nibbles(packed: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """[..., n] uint8 into [..., 2n] float32: all low halves of the bytes, then all high ones."""
    count = packed.shape[-1]
    out[..., :count] = packed & 15
    out[..., count:] = packed >> 4
    return out


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 2:], out).sub_(8).mul_(_halves(blocks, 0, 1))


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale_and_low = _halves(blocks, 0, 2)
    _nibbles(blocks[:, 4:], out).mul_(scale_and_low[:, :1]).add_(scale_and_low[:, 1:])


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """[b, 4] uint8, bit by bit -> [b, 32] uint8, each 0 or 16."""
    import torch

    bits = torch.arange(8, dtype=torch.uint8)
    return (((packed[:, :, None] >> bits) & 1) << 4).view(-1, 32)


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _nibbles(blocks[:, 6:], out).add_(_fifth_bits(blocks[:, 2:6])).sub_(16)
    out.mul_(_halves(blocks, 0, 1))


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale_and_low = _halves(blocks, 0, 2)
    _nibbles(blocks[:, 8:], out).add_(_fifth_bits(blocks[:, 4:8]))
    out.mul_(scale_and_low[:, :1]).add_(scale_and_low[:, 1:])


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    import torch

    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_halves(blocks, 0, 1))


def _eighths(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight sub-blocks' scales and minima, [b, 8, 1] each: a half times six bits of 12 bytes."""
    import torch

    supers = _halves(blocks, 0, 2)
    packed = blocks[:, 4:16]
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=1)
    lows = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=1)
    return (supers[:, :1] * scales)[:, :, None], (supers[:, 1:] * lows)[:, :, None]


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Eight sub-blocks of 32. Of a group of 32 bytes the low halves are one, the high the next."""
    scale, low = _eighths(blocks)
    _nibbles(blocks[:, 16:].reshape(-1, 4, 32), out.view(-1, 4, 64))
    out.view(-1, 8, 32).mul_(scale).sub_(low)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """As Q4_K, and bit i of 32 further bytes is the fifth of sub-block i."""
    import torch

    scale, low = _eighths(blocks)
    _nibbles(blocks[:, 48:].reshape(-1, 4, 32), out.view(-1, 4, 64))
    bits = torch.arange(8, dtype=torch.uint8)[:, None]
    fifth = ((blocks[:, None, 16:48] >> bits) & 1) << 4
    out.view(-1, 8, 32).add_(fifth).mul_(scale).sub_(low)


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Sixteen sub-blocks of 16 with an int8 scale each; a number's low 4 and high 2 bits apart."""
    import torch

    low = blocks[:, :128].reshape(-1, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    scales = blocks[:, 192:208].view(torch.int8).to(torch.float32)
    scale = _halves(blocks, 208, 1) * scales
    four = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    two = (high >> shifts) & 3
    out.view(-1, 2, 4, 32).copy_(four | (two << 4))
    out.sub_(32).view(-1, 16, 16).mul_(scale[:, :, None])


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2, dtype="float16"),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, dtype="bfloat16"),
}
"""The tensor types that are read, by the number they have in a file."""

TYPE_NAMES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Names of types that are not read, for messages."""
