"""Whether products in blocks of rows give a row the same bits here, wherever it stands in a block.

Knows: how to provoke a difference in rounding cheaply. Does not know: who pads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Self

import attrs
import torch

from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.int4 import COLUMNS_PER_WORD, quantize_int4
from pilotfish.kernels.linear import eager, int4
from pilotfish.kernels.linear.weight import LinearKind, LinearWeight

# Rows of a stand-in that differ; more would only cost time to draw.
STAND_IN_ROWS = 64
SIZES = (1, eager.BLOCK_ROWS)
"""What `probe` may find."""


@attrs.frozen
class Product:
    """All of a weight [O, K] that may decide in which order its products are added.

    group_size: columns that share a scale, of weights of four bits.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: LinearKind
    has_bias: bool = False
    group_size: int | None = None

    @classmethod
    def of(cls, weight: LinearWeight) -> Self:
        """That of a weight that is there."""
        size = None if weight.scale is None else weight.group_size
        shape = weight.out_features, weight.in_features
        return cls(shape, weight.dtype, weight.kind, weight.bias is not None, size)

    @classmethod
    def of_floats(
        cls, shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool = False, stays: bool = False
    ) -> Self:
        """That of a weight that is not there yet; stays: it is not packed where it could be."""
        packs = not stays and eager.can_pack(torch.empty(0, dtype=dtype))
        return cls(shape, dtype, "packed" if packs else "plain", has_bias)

    @classmethod
    def of_int4(cls, shape: tuple[int, int], dtype: torch.dtype, group_size: int) -> Self:
        """That of a weight of four bits that is not there yet."""
        packed = torch.empty((shape[0], shape[1] // COLUMNS_PER_WORD), dtype=torch.int32)
        scale = torch.empty((shape[0], shape[1] // group_size), dtype=torch.bfloat16)
        is_quick = int4.can_use_operator(packed, scale, dtype)
        return cls(shape, dtype, "int4" if is_quick else "int4_plain", False, group_size)

    def __str__(self) -> str:
        form = f"{self.kind}, with a bias" if self.has_bias else self.kind
        form += "" if self.group_size is None else f", groups of {self.group_size}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"products with {list(self.shape)} {dtype} ({form})"


def row_multiple(
    products: Iterable[Product], *, backend: KernelBackend, known: ProbeCache | None = None
) -> int | None:
    """Rows of a block if all products keep rows' bits in blocks; None if one does not.

    known: asked first, and filled. `linear` cuts rows in such blocks and pads the last one; rows
    that come as a multiple are not copied. 1 on triton and native (by construction) and where
    invariance is not asked for. Holds for this machine and number of threads.
    """
    if not is_probed(backend):
        return 1
    find = (known or ProbeCache()).find
    return largest(find(str(one), SIZES, partial(probe, one)) for one in products)


def is_probed(backend: KernelBackend) -> bool:
    """Whether rows' bits are wanted, and kernels do not keep them by construction."""
    return backend.name == "torch" and backend.invariant


def largest(found: Iterable[int | None]) -> int | None:
    """Of numbers of rows, each of which divides the next; None where one is."""
    held = list(found)
    return None if None in held else max((one for one in held if one is not None), default=1)


def probe(product: Product) -> int | None:
    """The rows of a block of `linear`; None if a row's bits depend on its place or its mates."""
    subject = stand_in(product)
    size = eager.block_rows(subject)
    x = mirrored((max(2 * size, 4), product.shape[1]), -1).to(product.dtype)
    return size if keeps_bits(lambda rows: eager.linear_in_blocks(rows, subject), x, size) else None


def keeps_bits(
    multiply: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int
) -> bool:
    """Whether products in blocks of `size` rows give a row its bits in any place, beside any rows.

    x: [T, ...], T at least two blocks. Every product that is made has as many rows, so there is
    nothing else to try but the places: two blocks, and all the blocks between them, in which one
    row has every place.
    """
    wanted = multiply(x)
    # The last one ends with x, so that its rows of padding stand in the block.
    runs = [slice(first, first + size) for first in range(1, size)] + [slice(size + 3, None)]
    if size == 1:  # places in memory are all that is left
        runs = [slice(first, None) for first in range(1, x.shape[0])]
    return all(torch.equal(multiply(x[run].clone()), wanted[run]) for run in runs)


def stand_in(product: Product) -> LinearWeight:
    """A weight of that shape, dtype, bias and kind whose two halves of K are equal.

    Times a row whose halves are opposite, every sum is zero but for rounding, so that any change
    of order shows in most outputs, where random data shows it in one of some thousands.
    """
    rows, columns = product.shape
    block = mirrored((min(STAND_IN_ROWS, rows), columns), 1).to(product.dtype)
    plain = block.repeat(-(-rows // len(block)), 1)[:rows]
    if product.group_size is not None:
        packed, scale = quantize_int4(plain, group_size=product.group_size)
        if product.kind == "int4_plain":  # torch's operator wants scales of the rows' dtype
            scale = scale.to(torch.float16)
        return int4.prepare(packed, scale, product.dtype)
    bias = plain.new_zeros(rows) if product.has_bias else None
    return eager.prepare(plain, bias, keep_plain=product.kind == "plain")


def mirrored(shape: tuple[int, ...], sign: int) -> torch.Tensor:
    """Random numbers, float32, the second half of the last axis `sign` times the first."""
    half = torch.randn((*shape[:-1], shape[-1] // 2), generator=torch.Generator().manual_seed(sign))
    return torch.cat((half, sign * half, torch.zeros(*shape[:-1], shape[-1] % 2)), dim=-1)
