"""row_multiple: which row padding makes linear layers batch-invariant on this machine.

Knows: how to provoke a difference in rounding cheaply. Does not know: who pads.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TypeAlias

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.int4 import quantize_int4
from pilotfish.kernels.linear import eager, int4
from pilotfish.kernels.linear.weight import LinearWeight

ProbeKey: TypeAlias = tuple[int, int, torch.dtype, bool, str]

MULTIPLES = (2, 4, 8, 16)
# oneDNN's packed kernels take 4 rows in no more time than 1 or 2, in float32 in less.
PACKED_MULTIPLES = MULTIPLES[1:]
# Each multiple is a size; a last size that stays, 16, 32 or 128, is a multiple of all of them.
SIZES = (2, 4, 6, 8, 12, 16, 32, 128)
# A pass above this many multiply-adds is left out, unless it is among the smallest sizes.
PASS_BUDGET = 300_000_000
ALWAYS_TRIED = 16
# Weights above this many elements are probed as they are: a stand-in would cost too much memory.
STAND_IN_LIMIT = 4_000_000
# Rows of a stand-in that differ; more would only cost time to draw.
STAND_IN_ROWS = 64


def row_multiple(
    weights: Iterable[LinearWeight],
    *,
    backend: KernelBackend,
    known: MutableMapping[ProbeKey, int | None] | None = None,
) -> int | None:
    """Return the smallest row multiple under which every weight's rows keep their bits.

    weights: a model's prepared linear layers; each (K, O, dtype, bias, kind) is tried once.
    known: results by that key, read and filled; pass one mapping to share results.
    Returns 2, 4, 8 or 16 (packed weights: at least 4); None when none of them holds; 1 on triton
    (by construction) and where invariance is not asked for. Holds for this machine and number of
    threads.
    """
    if backend.name == "triton" or not backend.invariant:
        return 1
    results = {} if known is None else known
    worst = 1
    for weight in weights:
        kind = weight.kind if weight.scale is None else f"{weight.kind}/{weight.group_size}"
        key = (
            weight.in_features,
            weight.out_features,
            weight.dtype,
            weight.bias is not None,
            kind,
        )
        if key not in results:
            results[key] = probe(weight)
        found = results[key]
        if found is None:
            return None
        worst = max(worst, found)
    return worst


def probe(weight: LinearWeight) -> int | None:
    """Return the smallest multiple that holds for one weight's shape and kind, or None."""
    generator = torch.Generator().manual_seed(0)
    subject = stand_in(weight, generator)
    budget_rows = PASS_BUDGET // (weight.in_features * weight.out_features)
    sizes = [size for size in SIZES if size <= max(budget_rows, ALWAYS_TRIED)]
    x = cancelling_rows(sizes[-1], weight, generator)
    wanted = eager.linear(x, subject)
    bad = [size for size in sizes[:-1] if not _rows_agree(x, subject, size, wanted)]
    multiples = PACKED_MULTIPLES if weight.kind == "packed" else MULTIPLES
    good = (m for m in multiples if not any(size % m == 0 for size in bad))
    return next(good, None)


def stand_in(weight: LinearWeight, generator: torch.Generator) -> LinearWeight:
    """Return a weight of the same shape, dtype, bias and kind whose two halves of K are equal.

    Times a row whose halves are opposite, every sum is zero but for rounding, so that any change
    of order shows in most outputs, where random data shows it in one of some thousands.
    """
    if weight.in_features * weight.out_features > STAND_IN_LIMIT:
        return weight
    rows, half = min(STAND_IN_ROWS, weight.out_features), weight.in_features // 2
    block = torch.randn(rows, half, generator=generator)
    rest = torch.zeros(rows, weight.in_features - 2 * half)
    block = torch.cat((block, block, rest), dim=1).to(weight.dtype)
    plain = block.repeat(-(-weight.out_features // rows), 1)[: weight.out_features]
    if weight.kind == "int4":
        if half % weight.group_size:  # the halves would not share their scales
            return weight
        packed, scale = quantize_int4(plain, group_size=weight.group_size)
        return int4.prepare(packed, scale, weight.dtype)
    bias = None if weight.bias is None else torch.zeros_like(weight.bias)
    return eager.prepare(plain, bias, keep_plain=weight.kind in ("plain", "int4_plain"))


def cancelling_rows(
    num_rows: int, weight: LinearWeight, generator: torch.Generator
) -> torch.Tensor:
    """Return [num_rows, K] random rows, the second half of K the negative of the first."""
    half = torch.randn(num_rows, weight.in_features // 2, generator=generator)
    rest = torch.randn(num_rows, weight.in_features % 2, generator=generator)
    return torch.cat((half, -half, rest), dim=1).to(weight.dtype)


def _rows_agree(x: torch.Tensor, weight: LinearWeight, size: int, wanted: torch.Tensor) -> bool:
    """Whether passes of `size` rows, at both ends of x, give the rows of `wanted`."""
    return all(
        torch.equal(eager.linear(x[i : i + size], weight), wanted[i : i + size])
        for i in (0, x.shape[0] - size)
    )
