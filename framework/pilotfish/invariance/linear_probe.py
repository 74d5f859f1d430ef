"""row_multiple: whether products in blocks of rows make linear layers batch-invariant here.

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
    """Return the rows of a block if every weight's products keep rows' bits; None if one does not.

    weights: a model's prepared linear layers; each (K, O, dtype, bias, kind) is tried once.
    known: results by that key, read and filled; pass one mapping to share results.
    `linear` cuts rows in such blocks and pads the last one; rows that come as a multiple are not
    copied. 1 on triton and native (by construction) and where invariance is not asked for. Holds
    for this machine and number of threads.
    """
    if backend.name in ("triton", "native") or not backend.invariant:
        return 1
    results = {} if known is None else known
    found: list[int | None] = [1]
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
        found.append(results[key])
    held = [multiple for multiple in found if multiple is not None]
    return max(held) if len(held) == len(found) else None


def probe(weight: LinearWeight) -> int | None:
    """Return the rows of a block if a row's bits depend neither on its place in it nor its mates.

    Every product that `linear` makes has as many rows, so there is nothing else to try but the
    places: two blocks, and all the blocks between them, in which one row has every place.
    """
    size = eager.block_rows(weight)
    generator = torch.Generator().manual_seed(0)
    subject = stand_in(weight, generator)
    x = cancelling_rows(max(2 * size, 4), weight, generator)
    wanted = eager.linear_in_blocks(x, subject)
    # The last one ends with x, so that its rows of padding stand in the block.
    runs = [slice(first, first + size) for first in range(1, size)] + [slice(size + 3, None)]
    if size == 1:  # places in memory are all that is left
        runs = [slice(first, None) for first in range(1, x.shape[0])]
    held = all(
        torch.equal(eager.linear_in_blocks(x[run].clone(), subject), wanted[run]) for run in runs
    )
    return size if held else None


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
