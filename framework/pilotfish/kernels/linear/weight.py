"""LinearWeight: a linear layer's weight in the form its backend reads.

Knows: the form and the shape. Does not know: how it is multiplied.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
import torch

from pilotfish.errors import WeightsError

LinearKind: TypeAlias = Literal["packed", "plain", "triton"]


@attrs.frozen(kw_only=True, eq=False)
class LinearWeight:
    """weight: [O, K], as loaded or in oneDNN's blocked layout; bias: [O] or None.

    kind: "packed" (oneDNN's layout, a copy), "plain" (as loaded, torch multiplies) or "triton"
    (as loaded, our kernel multiplies).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    kind: LinearKind
    in_features: int
    out_features: int
    dtype: torch.dtype

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

    def packed_as(self, packed: torch.Tensor) -> LinearWeight:
        """packed: the same weight in oneDNN's layout; returns the record that holds it instead."""
        return attrs.evolve(self, weight=packed, kind="packed")
