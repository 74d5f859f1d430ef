"""Partitions of a request's keys, PyTorch's flash kernel on each of them, and their merge.

Knows: how to keep a row's bits. Does not know: requests, pages, or who sees what.
Partitions are fixed by position: [0,128) [128,256) [256,512) [512,1024)... Small ones first, so
that a short context costs little; at most 512 keys, up to which the flash kernel takes a row's keys
in one block. Ranges are half open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from pilotfish.kernels.paged_attention.mask_spec import Range
from pilotfish.platform.torch_ops import bare

SMALLEST, LARGEST = 128, 512

WIDTH_MULTIPLE = 16
"""Head widths are padded with zeros to this multiple; others break the invariance in float32."""

TILE_ROWS = 512
"""The most rows of one head that a call has; the probe tries that many."""

MASK_VALUE = -1e30
"""Added to the score of a key that a row may not see. Finite, so that a row which sees nothing of a
partition gets a finite output and a log-sum-exp of about -1e30: its weight in the merge is 0."""


def partition(index: int) -> Range:
    """The keys of partition 0, 1, 2..."""
    return _start(index), _start(index + 1)


def _start(index: int) -> int:
    return index * SMALLEST if index <= 2 else (index - 2) * LARGEST


def partition_of(key: int) -> int:
    """The index of the partition that holds a key."""
    if key < LARGEST:
        return min(key // SMALLEST, 2)
    return key // LARGEST + 2


def partitions_of(keys: Range) -> range:
    """The indices of the partitions that a non-empty run of keys touches."""
    return range(partition_of(keys[0]), partition_of(keys[1] - 1) + 1)


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


def merge(parts: Sequence[torch.Tensor], lse: torch.Tensor) -> torch.Tensor:
    """parts: of each partition [..., V]; lse: [partitions, ...] float32. Returns [..., V] float32.

    Partitions are added in order: `torch.sum` would regroup them with their number.
    """
    weights = merge_weights(lse).unsqueeze(-1).unbind()
    merged = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        merged += part * weight
    return merged


def merge_weights(lse: torch.Tensor) -> torch.Tensor:
    """lse: [partitions, ...] float32, overwritten. Returns the partitions' weights, of sum 1.

    A partition with lse MASK_VALUE has weight exactly 0, so it changes no bit of the sum.
    """
    if lse.shape[0] == 1:
        return lse.fill_(1.0)
    weights = lse.sub_(lse.amax(0)).exp_()
    total = weights[0]
    for index in range(1, weights.shape[0]):
        total = total + weights[index]
    return weights.div_(total)
