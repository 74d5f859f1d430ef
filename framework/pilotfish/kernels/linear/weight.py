"""LinearWeight: a linear layer's weight in the form its backend reads.

Knows: the form and the shape. Does not know: how it is multiplied.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
import torch

from pilotfish.errors import WeightsError

LinearKind: TypeAlias = Literal["packed", "plain", "triton", "int4", "int4_plain", "native"]


@attrs.frozen(eq=False)
class PackedRows:
    """Outputs of a weight as a file has them: each row's K columns in one piece of memory.

    blocks: [O, bytes of a row] uint8 (or any dtype: rows are what counts), rows contiguous.
    kind: "float32", "bfloat16", "float16", a GGUF type ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q4_k", "q5_k", "q6_k"), or "int4": [O, K/8] int32 with scale [O, C] (see `kernels.int4`).
    """

    blocks: torch.Tensor
    kind: str
    in_features: int
    scale: torch.Tensor | None = None

    @property
    def out_features(self) -> int:
        """O of this part."""
        return self.blocks.shape[0]


@attrs.frozen(kw_only=True, eq=False)
class LinearWeight:
    """weight: [O, K], as loaded or in oneDNN's blocked layout; bias: [O] or None.

    kind: "packed" (oneDNN's layout, a copy), "plain" (as loaded, torch multiplies) or "triton"
    (as loaded, our kernel multiplies); of four bits: "int4" (in the layout of torch's operator,
    scale [C, O]) or "int4_plain" ([O, K/2] uint8, scale [O, C], unpacked for every product).
    "native" (as loaded, native code multiplies): parts hold the O outputs, perhaps of several
    kinds, native their addresses; weight is the first part's.
    dtype: of the rows that are multiplied; native code takes rows of any float dtype.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    kind: LinearKind
    in_features: int
    out_features: int
    dtype: torch.dtype
    scale: torch.Tensor | None = None
    parts: tuple[PackedRows, ...] = ()
    native: Any = None

    @property
    def group_size(self) -> int:
        """Columns that share a scale; INT4 weights only."""
        assert self.scale is not None, self.kind
        return self.in_features // self.scale.shape[0 if self.kind == "int4" else 1]

    @classmethod
    def from_plain(
        cls, weight: torch.Tensor, bias: torch.Tensor | None, *, kind: LinearKind
    ) -> LinearWeight:
        """weight: [O, K] as loaded, shared; raises WeightsError if bias does not fit it."""
        if weight.dim() != 2 or not weight.is_floating_point():
            raise WeightsError(
                f"a linear weight is {list(weight.shape)} {weight.dtype}; wanted [O, K] of a "
                "floating type; check the name map that loaded it"
            )
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
            raise WeightsError(
                f"a linear bias is {list(bias.shape)} {bias.dtype}; wanted "
                f"{list(weight.shape[:1])} {weight.dtype}; check the name map that loaded it"
            )
        return cls(
            weight=weight,
            bias=bias,
            kind=kind,
            in_features=weight.shape[1],
            out_features=weight.shape[0],
            dtype=weight.dtype,
        )
