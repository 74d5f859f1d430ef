"""GroupedWeight: the weights of all groups in the form their backend reads, filled one by one.

Knows: the form and the shapes. Does not know: how they are multiplied.
Letters: E groups, O output width, K input width, C groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs
import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.linear import LinearWeight, PackedRows, prepare_int4, prepare_linear
from pilotfish.kernels.linear.native import FLOAT_KINDS, prepare_blocks

GroupedKind: TypeAlias = Literal["separate", "triton", "triton_int4", "native"]


@attrs.frozen(kw_only=True, eq=False)
class GroupedWeight:
    """kind: "separate" (torch: one LinearWeight a group), "triton" or "triton_int4" (stacked), or
    "native" (rows as they lie, wherever they lie).

    separate: E LinearWeights. stacked: [E, O, K] float, or [E, O, K/8] int32 with scale [E, O, C].
    parts: native only, one a group; native: their addresses.
    dtype: of the rows that are multiplied.
    """

    kind: GroupedKind
    num_groups: int
    in_features: int
    out_features: int
    dtype: torch.dtype
    separate: tuple[LinearWeight, ...] = ()
    stacked: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    parts: tuple[PackedRows, ...] = ()
    native: Any = None

    @classmethod
    def from_parts(cls, parts: Sequence[PackedRows], dtype: torch.dtype) -> GroupedWeight:
        """parts: one a group, all of one O and K, used where they are; native backend only.

        Raises WeightsError if a part is not what its kind says.
        """
        whole = prepare_blocks(parts, None, dtype)
        sizes = {part.out_features for part in whole.parts}
        assert len(sizes) == 1, sizes
        return cls(
            kind="native",
            num_groups=len(whole.parts),
            in_features=whole.in_features,
            out_features=sizes.pop(),
            dtype=dtype,
            parts=whole.parts,
            native=whole.native,
        )


@attrs.define(eq=False)
class GroupedWeightBuilder:
    """Takes the weight of one group after the other, each once, and keeps no second copy of any.

    out_features, in_features: O and K of every group. dtype: of the rows to be multiplied, and of
    weights that are not packed.
    """

    num_groups: int
    out_features: int
    in_features: int
    dtype: torch.dtype = attrs.field(kw_only=True)
    backend: KernelBackend = attrs.field(kw_only=True)
    _separate: dict[int, LinearWeight] = attrs.field(factory=dict, init=False)
    _seen: set[int] = attrs.field(factory=set, init=False)
    _stacked: torch.Tensor | None = attrs.field(default=None, init=False)
    _scale: torch.Tensor | None = attrs.field(default=None, init=False)

    def add(self, group: int, weight: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        """weight: [O, K] float; or [O, K/8] int32 with scale: [O, C] (see `kernels.int4`)."""
        assert 0 <= group < self.num_groups, group
        assert group not in self._seen, group
        self._seen.add(group)
        if self.backend.name != "torch":
            self._stack(group, weight, scale)
            return
        if scale is None:
            prepared = prepare_linear(weight, backend=self.backend)
        else:
            prepared = prepare_int4(weight, scale, dtype=self.dtype)
        if prepared.kind != "packed":  # torch cannot stack what oneDNN has packed
            weight, scale = self._stack(group, prepared.weight, prepared.scale)
            prepared = attrs.evolve(prepared, weight=weight, scale=scale)
        self._separate[group] = prepared

    def _stack(
        self, group: int, weight: torch.Tensor, scale: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Copies a group's weight to its place beside the others; returns views of the places.

        Kept one by one, some ten thousand experts would be as many mappings of the file, or would
        lie scattered over a heap that cannot shrink any more (measured: half as much again).
        """
        if self._stacked is None:
            self._stacked = weight.new_empty((self.num_groups, *weight.shape))
            if scale is not None:
                self._scale = scale.new_empty((self.num_groups, *scale.shape))
        self._stacked[group] = weight
        if self._scale is None or scale is None:
            return self._stacked[group], None
        self._scale[group] = scale
        return self._stacked[group], self._scale[group]

    @property
    def is_complete(self) -> bool:
        """Whether every group has its weight."""
        return len(self._seen) == self.num_groups

    def finish(self) -> GroupedWeight:
        """The weight of all groups."""
        assert self.is_complete, self.num_groups - len(self._seen)
        if self.backend.name == "native":
            return GroupedWeight.from_parts(self._native_parts(), self.dtype)
        kind: GroupedKind = "separate"
        if self.backend.name == "triton":
            kind = "triton" if self._scale is None else "triton_int4"
        return GroupedWeight(
            kind=kind,
            num_groups=self.num_groups,
            in_features=self.in_features,
            out_features=self.out_features,
            dtype=self.dtype,
            separate=tuple(self._separate[group] for group in sorted(self._separate)),
            stacked=None if kind == "separate" else self._stacked,
            scale=None if kind == "separate" else self._scale,
        )

    def _native_parts(self) -> list[PackedRows]:
        assert self._stacked is not None
        kind = FLOAT_KINDS[self._stacked.dtype] if self._scale is None else "int4"
        scales = [None] * self.num_groups if self._scale is None else self._scale
        pairs = zip(self._stacked, scales, strict=True)
        return [PackedRows(rows, kind, self.in_features, scale) for rows, scale in pairs]
