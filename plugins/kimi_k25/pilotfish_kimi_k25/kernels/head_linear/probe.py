"""head_row_multiple: whether blocks of rows make head_linear batch-invariant on this machine.

Knows: which numbers show it. Does not know: who pads.
"""

from __future__ import annotations

from functools import partial

import torch

from pilotfish.invariance.linear_probe import keeps_bits, mirrored
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear.eager import BLOCK_ROWS
from pilotfish_kimi_k25.kernels.head_linear import eager


def head_row_multiple(
    shape: tuple[int, int, int], dtype: torch.dtype, *, backend: KernelBackend, known: ProbeCache
) -> int | None:
    """Return the rows of a block if products in blocks keep rows' bits; None if they do not.

    shape: N, O, K of the weight. known: asked first, and filled; not kept for other processes. 1 on
    native and triton (by construction) and where invariance is not asked for. Holds for this
    machine and number of threads.
    """
    if backend.name != "torch" or not backend.invariant:
        return 1
    tried = f"products of {shape[0]} heads with [{shape[1]}, {shape[2]}] {dtype}"
    return known.find(tried, (BLOCK_ROWS,), partial(_probe, shape, dtype), is_kept=False)


def _probe(shape: tuple[int, int, int], dtype: torch.dtype) -> int | None:
    weight = mirrored(shape, 1).to(dtype)
    x = mirrored((2 * BLOCK_ROWS, shape[0], shape[2]), -1).to(dtype)
    multiply = partial(eager.head_linear_in_blocks, weight=weight)
    return BLOCK_ROWS if keeps_bits(multiply, x, BLOCK_ROWS) else None
