"""INT4 weights: eight whole numbers of four bits in an int32, one scale for each few columns.

Knows: the packed form and what numbers it stands for. Does not know: files or what is multiplied.
Letters: O output width, K input width, C groups of columns.
The form: `packed[o, k // 8]` holds column k in bits 4 * (k % 8) to 4 * (k % 8) + 3, stored with 8
added; the number is `(nibble - 8) * scale[o, k // (K / C)]`, computed in float32, rounded once.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.int4 import eager, reference

__all__ = ["COLUMNS_PER_WORD", "dequantize_int4", "quantize_int4"]

COLUMNS_PER_WORD = 8


def dequantize_int4(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the numbers of a packed weight.

    packed: [..., O, K/8] int32; scale: [..., O, C] float, C dividing K/8; returns [..., O, K].
    """
    return eager.dequantize(packed, scale, dtype)


def quantize_int4(
    weight: torch.Tensor, *, group_size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (packed, scale) of the nearest numbers: symmetric, -8 to 7 times a group's scale.

    weight: [..., O, K] float, K a multiple of group_size, group_size of 8; scale is bfloat16.
    The largest of a group becomes 7 or -7. Made for tests and benchmarks, not for quality.
    """
    return reference.quantize(weight, group_size)
