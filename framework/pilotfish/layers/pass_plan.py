"""PassPlan: what a layer plans its part of a pass with, where kernels are native.

Knows: the rows of a pass, and what all layers share. Does not know: how any layer computes.
A layer that has a plan is computed by native calls that were laid down when the model was loaded;
one that has none is called as ever, and the calls around it wait for it.
Axis letters: T packed tokens, D model width, R rotated width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.plan import Buffer, Plan, PlannedCalls, Pointer, Rows
from pilotfish.kernels.paged_attention.planned import pass_address
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer

if TYPE_CHECKING:
    from pilotfish.layers.linear import Linear
    from pilotfish.layers.norm import Norm


def has_plan(layer: object, plan: str = "plan") -> bool:
    """Whether a layer's method `plan` speaks for what it computes.

    Not where a subclass, or the layer itself, has something in the place of a method that stands
    beside `plan`; how a layer is made and gets its tensors is no matter.
    """
    kinds = type(layer).__mro__
    owner = next((one for one in kinds if plan in vars(one)), None)
    if owner is None:
        return False
    over = [vars(layer), *(vars(one) for one in kinds[: kinds.index(owner)])]
    computing = {
        name
        for name, value in vars(owner).items()
        if isinstance(value, FunctionType) and name not in vars(Layer)
    }
    return not any(name in computing - {"__init__"} for names in over for name in names)


AddressOf: TypeAlias = Callable[[ForwardPass], int]
"""Where something lies in a pass; it must stay there as long as the ForwardPass lives."""
IsBetter: TypeAlias = Callable[[ForwardPass], bool]
"""Whether a layer called by itself computes a pass in less time than its planned calls."""


def _every_pass_gives() -> dict[str, AddressOf]:
    return {
        "cos": lambda run: run.cos.data_ptr(),
        "sin": lambda run: run.sin.data_ptr(),
        "write_slots": lambda run: run.write_slots.data_ptr(),
        "attention": lambda run: pass_address(run.plan),
    }


@attrs.frozen(kw_only=True, eq=False)
class PassPlan:
    """plan: the calls so far. rows: T, none of them padding.

    dtype, cache_dtype: of rows between layers, and of pages.
    cos, sin: [T, R] float32, the angles that every pass brings. write_slots, attention: addresses
    that it brings too: [T] int64 slots, and what `plan_paged_attention` must know.
    current: the pass that runs, for layers without a plan; empty between passes.
    """

    plan: Plan
    rows: Rows
    dtype: torch.dtype
    cache_dtype: torch.dtype
    backend: KernelBackend
    cos: Buffer
    sin: Buffer
    write_slots: Pointer = attrs.field(factory=lambda: Pointer("write_slots"), init=False)
    attention: Pointer = attrs.field(factory=lambda: Pointer("attention"), init=False)
    current: list[ForwardPass] = attrs.field(factory=list, init=False)
    _given: dict[str, AddressOf] = attrs.field(factory=_every_pass_gives, init=False)
    _unless: dict[str, IsBetter] = attrs.field(factory=dict, init=False)

    @classmethod
    def empty(
        cls, *, rotated: int, dtype: torch.dtype, cache_dtype: torch.dtype, backend: KernelBackend
    ) -> PassPlan:
        """A plan without calls; rotated: R."""
        rows = Rows("T")
        return cls(
            plan=Plan(),
            rows=rows,
            dtype=dtype,
            cache_dtype=cache_dtype,
            backend=backend,
            cos=Buffer(rows, rotated, torch.float32, "cos"),
            sin=Buffer(rows, rotated, torch.float32, "sin"),
        )

    def given(self, name: str, address: AddressOf) -> Pointer:
        """An address that a layer asks of every pass; under one name it is asked for once."""
        self._given[name] = address
        return Pointer(name)

    def unless(self, name: str, is_better: IsBetter) -> None:
        """Passes that a layer would rather be called in; under one name it is asked once."""
        self._unless[name] = is_better

    def serves(self, current: ForwardPass) -> bool:
        """Whether no layer would rather be called in this pass."""
        return not any(is_better(current) for is_better in self._unless.values())

    def cache(self, layer: int) -> Pointer:
        """Where a layer's pages lie."""
        return self.given(f"cache.{layer}", lambda run: run.caches[layer].data_ptr())

    def run(
        self, calls: PlannedCalls, current: ForwardPass, others: Mapping[str, int] | None = None
    ) -> None:
        """Runs the finished calls in a pass, after `begin`; others: addresses beside the pass's."""
        addresses = dict(others or {})
        for name in calls.pointers - addresses.keys():
            addresses[name] = self._given[name](current)
        self.current.append(current)
        try:
            calls.run(addresses, torch.get_num_threads())
        finally:
            self.current.clear()

    def buffer(self, width: int, dtype: torch.dtype | None = None) -> Buffer:
        """A new [T, width] of the rows' dtype, or of another."""
        return Buffer(self.rows, width, dtype or self.dtype)

    def sublayer(self, layer: Any, x: Buffer) -> Buffer:
        """Plans a layer that takes [T, D] and this pass, and gives [T, D]."""
        if not has_plan(layer):
            return self.called(layer, x)
        planned: Buffer = layer.plan(self, x)
        return planned

    def called(self, layer: Any, x: Buffer) -> Buffer:
        """The same for a layer that has no plan: it is called with tensors in every pass."""
        out = self.buffer(x.width)

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
        if has_plan(norm, "plan_add"):
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
