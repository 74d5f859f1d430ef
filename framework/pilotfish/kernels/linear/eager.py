"""Linear layers on a CPU: oneDNN with a weight packed once, or plain torch.

Knows: when packing is possible, how its operator is called, and how products of one fixed number of
rows keep a row's bits its own. Does not know: Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import attrs
import torch

from pilotfish.kernels.linear import int4
from pilotfish.kernels.linear.weight import LinearWeight
from pilotfish.platform.torch_ops import bare

# The number of rows oneDNN is told to expect. Measured over 1 to 512 rows: 2 to 512 give one
# speed, 1 is up to 2.5 times slower at 8 rows and more, and no hint is slow at 512.
BATCH_HINT = 8

# A library chooses its kernel, and with it the order of additions, by the number of rows. So where
# bits matter every product has this many: 8 packed rows take 1.1 to 1.4 times as long as one.
BLOCK_ROWS = 8


def block_rows(weight: LinearWeight) -> int:
    """Rows of every product of this weight where bits matter.

    One for bfloat16 where the processor does not multiply it: there 8 rows take 3.4 times as long
    as one, and in prefill single rows are as fast as blocks of any size, to a tenth.
    """
    is_plain = weight.kind in ("plain", "int4_plain")
    if is_plain and weight.dtype == torch.bfloat16 and not multiplies_bfloat16():
        return 1
    return BLOCK_ROWS


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor, and the library as it was told, multiply bfloat16 without widening."""
    ops = torch.ops.mkldnn
    supports = torch._C._has_mkldnn and hasattr(ops, "_is_mkldnn_bf16_supported")
    return bool(supports and ops._is_mkldnn_bf16_supported())


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this build of torch and this processor pack `weight`'s device and dtype."""
    ops = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return multiplies_bfloat16()
    if weight.dtype == torch.float16:
        return bool(ops._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32


def prepare(weight: torch.Tensor, bias: torch.Tensor | None, *, keep_plain: bool) -> LinearWeight:
    """weight: [O, K]; bias: [O] or None; packs unless asked not to or not able to."""
    plain = LinearWeight.from_plain(weight, bias, kind="plain")
    if keep_plain or not can_pack(weight):
        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), BATCH_HINT)
    return attrs.evolve(plain, weight=packed, kind="packed")


@cache
def _packed_linear() -> Callable[..., Any]:
    return bare(torch.ops.mkldnn._linear_pointwise.default)


def linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """x: [T, K]; returns a new [T, O]: one product of the library, which chooses a kernel by T."""
    if weight.kind == "packed":
        out: torch.Tensor = _packed_linear()(x, weight.weight, weight.bias, "none", [], "")
        return out
    if weight.scale is not None:
        return int4.linear(x, weight)
    return torch.nn.functional.linear(x, weight.weight, weight.bias)


def linear_in_blocks(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """x: [T, K]; returns a new [T, O]: products of `block_rows` rows each, the last one padded."""
    if not x.shape[0]:
        return x.new_empty((0, weight.out_features))
    size = block_rows(weight)
    if weight.kind == "int4_plain" and x.shape[0] > size:
        weight = int4.unpacked(weight)  # once, not for every block
    parts = [linear(block, weight) for block in blocks_of(x, size)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if out.shape[0] == x.shape[0] else out[: x.shape[0]].clone()


def blocks_of(x: torch.Tensor, size: int = BLOCK_ROWS) -> Sequence[torch.Tensor]:
    """x: [T, ...], T > 0; returns it, contiguous, in blocks of `size` rows, the last padded."""
    short = -x.shape[0] % size
    if short:
        x = torch.cat((x, x.new_zeros((short, *x.shape[1:]))))
    return torch.split(x.contiguous(), size)


def linear_each(
    xs: Sequence[torch.Tensor], weights: Sequence[LinearWeight], *, in_blocks: bool
) -> list[torch.Tensor]:
    """`linear`, or `linear_in_blocks`, of each pair."""
    multiply = linear_in_blocks if in_blocks else linear
    return [multiply(x, weight) for x, weight in zip(xs, weights, strict=True)]
