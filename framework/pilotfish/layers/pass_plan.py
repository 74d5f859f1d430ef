"""PassPlan: what a layer plans its part of a pass with, where kernels are native.

Knows: the rows of a pass, and what all layers share. Does not know: how any layer computes.
A layer that has a plan is computed by native calls that were laid down when the model was loaded;
one that has none is called as ever, and the calls around it wait for it.
Axis letters: T packed tokens, D model width, R rotated width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.plan import Buffer, Plan, Pointer, Rows
from pilotfish.layers.forward_pass import ForwardPass

if TYPE_CHECKING:
    from pilotfish.layers.linear import Linear
    from pilotfish.layers.norm import Norm

WRITE_SLOTS = Pointer("write_slots")
ATTENTION = Pointer("attention")
"""Addresses that every pass gives: [T] int64 slots, and what attention must know of the pass."""


def cache_of(layer: int) -> Pointer:
    """Where a layer's pages lie."""
    return Pointer(f"cache.{layer}")


def has_plan(layer: object, call: str = "__call__", plan: str = "plan") -> bool:
    """Whether a layer's method `plan` speaks for its method `call`.

    Not where a subclass wrote the one anew and inherits the other.
    """
    for one in type(layer).__mro__:
        if plan in vars(one):
            return True
        if call in vars(one):
            return False
    return False


@attrs.frozen(kw_only=True, eq=False)
class PassPlan:
    """plan: the calls so far. rows: T. dtype, cache_dtype: of rows between layers, and of pages.

    cos, sin: [T, R] float32, the angles that every pass brings.
    current: the pass that runs, for layers without a plan; empty between passes.
    """

    plan: Plan
    rows: Rows
    dtype: torch.dtype
    cache_dtype: torch.dtype
    backend: KernelBackend
    cos: Buffer
    sin: Buffer
    current: list[ForwardPass] = attrs.field(factory=list)

    def buffer(self, width: int, dtype: torch.dtype | None = None) -> Buffer:
        """A new [T, width] of the rows' dtype, or of another."""
        return Buffer(self.rows, width, dtype or self.dtype)

    def sublayer(self, layer: Any, x: Buffer, *, out_width: int | None = None) -> Buffer:
        """Plans a layer that takes [T, D] and this pass, and gives [T, D] or [T, out_width]."""
        if has_plan(layer):
            planned: Buffer = layer.plan(self, x)
            return planned
        out = self.buffer(out_width or x.width)

        def call(rows: torch.Tensor, result: torch.Tensor) -> None:
            result.copy_(layer(rows, self.current[0]))

        self.plan.torch(call, x, out)
        return out

    def linear(self, layer: Linear, x: Buffer, out: Buffer | None = None) -> Buffer:
        """Plans a Linear, which takes the backend instead of the pass; out: see `Linear.plan`."""
        if has_plan(layer):
            return layer.plan(self, x, out)
        into = out or Buffer(x.rows, layer.prepared.out_features, x.dtype)

        def call(rows: torch.Tensor, result: torch.Tensor) -> None:
            result.copy_(layer(rows, self.backend, into.dtype))

        self.plan.torch(call, x, into)
        return into

    def add_norm(
        self, norm: Norm, x: Buffer, stream: Buffer | None, multiplier: float
    ) -> tuple[Buffer, Buffer]:
        """Plans `Norm.add`: returns (normed rows, the stream, which is updated in place)."""
        if has_plan(norm, "add", "plan_add"):
            return norm.plan_add(self, x, stream, multiplier)
        normed = Buffer(x.rows, x.width, x.dtype)

        def call(x: torch.Tensor, normed: torch.Tensor, *streams: torch.Tensor) -> None:
            before = streams[0] if streams else None
            rows, after = norm.add(x, before, self.backend, multiplier)
            normed.copy_(rows)
            if before is not None and after is not before:
                before.copy_(after)

        self.plan.torch(call, x, normed, *(() if stream is None else (stream,)))
        return normed, x if stream is None else stream
