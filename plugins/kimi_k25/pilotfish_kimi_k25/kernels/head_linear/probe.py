"""head_row_multiple: which row padding makes head_linear batch-invariant on this machine.

Knows: how to provoke a difference in rounding. Does not know: who pads.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

from pilotfish.kernels import KernelBackend
from pilotfish_kimi_k25.kernels.head_linear import eager

MULTIPLES = (2, 4, 8, 16)
# Each multiple is a size; 16, 32 and 128 are multiples of all of them.
SIZES = (2, 4, 6, 8, 12, 16, 32, 128)
# A pass above this many multiply-adds is left out, unless it is among the smallest sizes.
PASS_BUDGET = 300_000_000
ALWAYS_TRIED = 16


def head_row_multiple(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    backend: KernelBackend,
    known: MutableMapping[Any, int | None],
) -> int | None:
    """Return the smallest row multiple under which rows keep their bits; None when none does.

    shape: N, O, K of the weight. known: results, read and filled. 1 on triton (by construction) and
    where invariance is not asked for. Holds for this machine and number of threads.
    """
    if backend.name == "triton" or not backend.invariant:
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
    budget_rows = PASS_BUDGET // (num_heads * width_o * width_k)
    sizes = [size for size in SIZES if size <= max(budget_rows, ALWAYS_TRIED)]
    half = torch.randn(sizes[-1], num_heads, width_k // 2, generator=noise)
    rest = torch.zeros(sizes[-1], num_heads, width_k % 2)
    x = torch.cat((half, -half, rest), dim=2).to(dtype)
    wanted = eager.head_linear(x, weight)
    bad = [size for size in sizes[:-1] if not _rows_agree(x, weight, size, wanted)]
    good = (m for m in MULTIPLES if not any(size % m == 0 for size in bad))
    return next(good, None)


def _rows_agree(x: torch.Tensor, weight: torch.Tensor, size: int, wanted: torch.Tensor) -> bool:
    """Whether passes of `size` rows, at both ends of x, give the rows of `wanted`."""
    return all(
        torch.equal(eager.head_linear(x[i : i + size], weight), wanted[i : i + size])
        for i in (0, x.shape[0] - size)
    )
