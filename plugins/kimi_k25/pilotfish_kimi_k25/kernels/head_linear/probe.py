"""head_row_multiple: whether blocks of rows make head_linear batch-invariant on this machine.

Knows: how to provoke a difference in rounding. Does not know: who pads.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear.eager import BLOCK_ROWS
from pilotfish_kimi_k25.kernels.head_linear import eager


def head_row_multiple(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    backend: KernelBackend,
    known: MutableMapping[Any, int | None],
) -> int | None:
    """Return the rows of a block if products in blocks keep rows' bits; None if they do not.

    shape: N, O, K of the weight. known: results, read and filled. 1 on native and triton (by
    construction) and where invariance is not asked for. Holds for this machine and number of
    threads.
    """
    if backend.name != "torch" or not backend.invariant:
        return 1
    key = ("head_linear", shape, dtype)
    if key not in known:
        known[key] = _probe(shape, dtype)
    return known[key]


def _probe(shape: tuple[int, int, int], dtype: torch.dtype) -> int | None:
    """Rows whose two halves cancel: every sum is zero but for rounding, so any change of order
    shows in most outputs.
    """
    num_heads, width_o, width_k = shape
    noise = torch.Generator().manual_seed(0)
    half = torch.randn(num_heads, width_o, width_k // 2, generator=noise)
    rest = torch.randn(num_heads, width_o, width_k % 2, generator=noise)
    weight = torch.cat((half, half, rest), dim=2).to(dtype)
    half = torch.randn(2 * BLOCK_ROWS, num_heads, width_k // 2, generator=noise)
    rest = torch.zeros(2 * BLOCK_ROWS, num_heads, width_k % 2)
    x = torch.cat((half, -half, rest), dim=2).to(dtype)
    wanted = eager.head_linear_in_blocks(x, weight)
    # In which one row has every place of a block; the last run is padded.
    runs = [slice(first, first + BLOCK_ROWS) for first in range(1, BLOCK_ROWS)]
    runs.append(slice(BLOCK_ROWS + 3, None))
    held = all(
        torch.equal(eager.head_linear_in_blocks(x[run], weight), wanted[run]) for run in runs
    )
    return BLOCK_ROWS if held else None
