"""Linear layers on a CPU whose weight stays packed in four bits.

Knows: torch's operator for such weights and when it is quick. Does not know: Triton.
Letters: T packed tokens, K input width, O output width, C groups of columns that share a scale.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.errors import WeightsError
from pilotfish.kernels.int4 import COLUMNS_PER_WORD, dequantize_int4
from pilotfish.kernels.linear.weight import LinearKind, LinearWeight

# What the operator takes: group sizes, a multiple of output rows; and where it has vector code:
# elsewhere, and in other dtypes, it goes number by number (20 times slower than unpacking).
OPERATOR_GROUPS = (32, 64, 128, 256)
OPERATOR_ROWS = 16
QUICK_ON = ("AVX2", "AVX512")


def prepare(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> LinearWeight:
    """packed: [O, K/8] int32; scale: [O, C]; dtype: of the rows; raises WeightsError."""
    out_features, in_features = packed.shape[0], packed.shape[-1] * COLUMNS_PER_WORD
    if packed.dtype != torch.int32 or packed.dim() != 2 or scale.shape[:-1] != packed.shape[:1]:
        raise WeightsError(
            f"an INT4 weight is {list(packed.shape)} {packed.dtype} with scales "
            f"{list(scale.shape)}; wanted [O, K/8] int32 with [O, groups]; check the rules that "
            "loaded it"
        )
    if in_features % scale.shape[-1] or in_features // scale.shape[-1] % COLUMNS_PER_WORD:
        raise WeightsError(
            f"an INT4 weight of {in_features} columns has {scale.shape[-1]} scales a row; wanted "
            f"groups of a multiple of {COLUMNS_PER_WORD} columns; check the group size"
        )
    kind: LinearKind = "int4" if can_use_operator(packed, scale, dtype) else "int4_plain"
    numbers = (dequantize_int4(packed, torch.ones_like(scale), torch.float32) + 8).int()
    if kind == "int4":
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        scale = scale.T.contiguous()
    else:
        first, second = numbers.to(torch.uint8).chunk(2, dim=1)
        weight, scale = first | (second << 4), scale.clone()
    return LinearWeight(
        weight=weight,
        bias=None,
        scale=scale,
        kind=kind,
        in_features=in_features,
        out_features=out_features,
        dtype=dtype,
    )


def can_use_operator(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's INT4 operator takes this weight and has vector code for it here."""
    group_size = packed.shape[-1] * COLUMNS_PER_WORD // scale.shape[-1]
    return (
        packed.device.type == "cpu"
        and dtype == torch.bfloat16
        and scale.dtype == torch.bfloat16
        and group_size in OPERATOR_GROUPS
        and packed.shape[0] % OPERATOR_ROWS == 0
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        and torch.backends.cpu.get_cpu_capability() in QUICK_ON
    )


def linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    """x: [T, K]; returns a new [T, O]; no bias."""
    assert weight.scale is not None
    if weight.kind == "int4_plain":
        return torch.nn.functional.linear(x, _unpacked(weight.weight, weight.scale, weight.dtype))
    # The operator reads pairs (scale, zero point), of which only the scales are kept in memory.
    pairs = torch.zeros((*weight.scale.shape, 2), dtype=weight.scale.dtype)
    pairs[..., 0] = weight.scale
    out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.contiguous(), weight.weight, weight.group_size, pairs
    )
    return out


def unpacked(weight: LinearWeight) -> LinearWeight:
    """The plain weight that an "int4_plain" one stands for, unpacked now: for several products."""
    assert weight.kind == "int4_plain", weight.kind
    assert weight.scale is not None
    plain = _unpacked(weight.weight, weight.scale, weight.dtype)
    return attrs.evolve(weight, weight=plain, scale=None, kind="plain")


def _unpacked(halves: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """halves: [O, K/2] uint8, column i below column i + K/2; scale: [O, C]; returns [O, K].

    With halves every pass runs over memory in order: half the time of unpacking neighbours.
    """
    if dtype not in (torch.float32, scale.dtype):
        return _unpacked(halves, scale, torch.float32).to(dtype)
    rows, width = halves.shape
    numbers = torch.empty((rows, 2 * width), dtype=torch.uint8)
    torch.bitwise_and(halves, 15, out=numbers[:, :width])
    torch.bitwise_right_shift(halves, 4, out=numbers[:, width:])
    grouped = numbers.view(torch.int8).sub_(8).to(dtype).view(*scale.shape, -1)
    return grouped.mul_(scale.to(dtype).unsqueeze(-1)).view(rows, -1)
