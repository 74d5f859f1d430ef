"""Linear layers on a CPU: oneDNN with a weight packed once, or plain torch.

Knows: when packing is possible and how its operator is called. Does not know: Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from pilotfish.kernels.linear import int4
from pilotfish.kernels.linear.weight import LinearWeight
from pilotfish.kernels.operators import bare

# The number of rows oneDNN is told to expect. Measured over 1 to 512 rows: 2 to 512 give one
# speed, 1 is up to 2.5 times slower at 8 rows and more, and no hint is slow at 512.
BATCH_HINT = 8


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this build of torch and this processor pack `weight`'s device and dtype."""
    ops = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(ops._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32


def prepare(weight: torch.Tensor, bias: torch.Tensor | None, *, keep_plain: bool) -> LinearWeight:
    """weight: [O, K]; bias: [O] or None; packs unless asked not to or not able to."""
    plain = LinearWeight.from_plain(weight, bias, kind="plain")
    if keep_plain or not can_pack(weight):
        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), BATCH_HINT)
    return plain.packed_as(packed)


@cache
def _packed_linear() -> Callable[..., Any]:
    return bare(torch.ops.mkldnn._linear_pointwise.default)


def linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """x: [T, K]; returns a new [T, O], as the public function."""
    if weight.kind == "packed":
        out: torch.Tensor = _packed_linear()(x, weight.weight, weight.bias, "none", [], "")
        return out
    if weight.scale is not None:
        return int4.linear(x, weight)
    return torch.nn.functional.linear(x, weight.weight, weight.bias)


def linear_each(xs: Sequence[torch.Tensor], weights: Sequence[LinearWeight]) -> list[torch.Tensor]:
    """`linear` of each pair, all weights of one kind: that is asked once."""
    if not weights or weights[0].kind != "packed":
        return [linear(x, weight) for x, weight in zip(xs, weights, strict=True)]
    call = _packed_linear()
    return [
        call(x, weight.weight, weight.bias, "none", [], "")
        for x, weight in zip(xs, weights, strict=True)
    ]
