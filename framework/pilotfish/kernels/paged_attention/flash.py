"""One partition's attention on the CPU: PyTorch's flash kernel, and the weights of its results.

Knows: how to keep a row's bits. Does not know: requests, pages or partitions' places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from pilotfish.platform.torch_ops import bare

WIDTH_MULTIPLE = 16
"""Head widths are padded with zeros to this multiple; others break the invariance in float32."""

MASK_VALUE = -1e30
"""Added to the score of a key that a row may not see. Finite, so that a row which sees nothing of a
partition gets a finite output and a log-sum-exp of about -1e30: its weight in the merge is 0."""


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q: [b, h, M, H]; k, v: [b, h, C, H]; mask: [M, C] or [b, 1, M, C] float32, added to scores.

    Returns (out [b, h, M, H] of q's dtype and strides, log-sum-exp [b, h, M] float32).
    A row's bits depend on the row, k, v, its mask and C as long as M is a multiple of what
    `attention_row_multiple` found; a mask of zeros and no mask give the same bits.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _flash_attention()(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return result


@cache
def _flash_attention() -> Callable[..., Any]:
    return bare(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)


def merge_weights(lse: torch.Tensor) -> torch.Tensor:
    """lse: [partitions, ...] float32, overwritten. Returns the partitions' weights, of sum 1.

    A partition with lse MASK_VALUE has weight exactly 0, so it changes no bit of the sum.
    The sum runs in order of the partitions: `torch.sum` would regroup it with their number.
    """
    if lse.shape[0] == 1:
        return lse.fill_(1.0)
    weights = lse.sub_(lse.amax(0)).exp_()
    total = weights[0]
    for index in range(1, weights.shape[0]):
        total = total + weights[index]
    return weights.div_(total)
