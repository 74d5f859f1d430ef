"""PassPlan: what a layer plans its part of a pass with, where kernels are native.

Knows: the rows of a pass, and what all layers share. Does not know: how any layer computes.
A layer that has a plan is computed by native calls that are laid down once;
one that has none is called as ever, and the calls around it wait for it.
Axis letters: T packed tokens, D model width, R rotated width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer, Columns, Pointer, Rows
from pilotfish.kernels.native.numbers import address_of
from pilotfish.kernels.native.plan import Plan, PlannedCalls
from pilotfish.kernels.paged_attention.planned import pass_address
from pilotfish.layers.forward_pass import ForwardPass, pair_of
from pilotfish.layers.layer import Layer
from pilotfish.layers.rope import Rotary


def has_plan(layer: object, plan: str = "plan") -> bool:
    """Whether a layer's method `plan` speaks for what it computes: it is as the class was written
    that has that method. A class that sets it to None has none.
    """
    owner = next((one for one in type(layer).__mro__ if plan in vars(one)), None)
    return owner is not None and callable(vars(owner)[plan]) and is_as_written(layer, owner)


def is_as_written(layer: object, kind: type) -> bool:
    """Whether a layer computes what its class `kind` was written to compute."""
    return not replaced(layer, kind)


def replaced(layer: object, kind: type) -> list[str]:
    """The methods of a layer that are not those its class `kind` was written with.

    A subclass, the layer itself or a patch has something in their place; how a layer is made and
    gets its tensors is no matter.
    """
    kinds = type(layer).__mro__
    below, own = kinds[: kinds.index(kind)], kinds[kinds.index(kind) :]
    in_place = (getattr(layer, "__dict__", {}), *map(vars, below))
    found: set[str] = set()
    for one in own:
        now = vars(one)
        written = now.get("_written", now)
        differ = (
            name for name in now.keys() | written.keys() if now.get(name) is not written.get(name)
        )
        found |= {n for n in differ if _computes(n, now.get(n)) or _computes(n, written.get(n))}
        for names in in_place:
            found |= {name for name in names.keys() & now.keys() if _computes(name, now[name])}
    return sorted(found)


def _computes(name: str, value: object) -> bool:
    """Whether it may: it is not how a layer is made, nor what every Layer has."""
    return (
        callable(value)
        and name not in vars(Layer)
        and (name == "__call__" or not name.startswith("__"))
    )


AddressOf: TypeAlias = Callable[[ForwardPass], int]
"""Where something lies in a pass; it must stay there as long as the ForwardPass lives."""
IsBetter: TypeAlias = Callable[[ForwardPass], bool]
"""Whether a layer called by itself computes a pass in less time than its planned calls."""


class PassPlan:
    """What a pass is planned with, from the first layer to the last.

    rotary: what makes its angles; None where no layer turns its rows. dtype, cache_dtype: of rows
    between layers, and of pages.
    plan: the calls so far. rows: T, none of them padding. cos, sin: [T, R] float32, their angles.
    write_slots: [T] int64 of every pass; attention: what `plan_paged_attention` must know of it.
    current: the pass that runs, for layers without a plan; empty between passes.
    """

    def __init__(
        self,
        *,
        rotary: Rotary | None,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
        backend: KernelBackend,
    ) -> None:
        self.plan, self.rows = Plan(), Rows("T")
        self.dtype, self.cache_dtype = dtype, cache_dtype
        self.backend = backend
        self.current: list[ForwardPass] = []
        self._given: dict[str, AddressOf] = {}
        self._unless: dict[str, IsBetter] = {}
        self._row_widths: dict[int, int] = {}
        self._checked: tuple[torch.Tensor, ...] = ()
        self.write_slots = self._rows_of_pass("write_slots", torch.int64)
        self.attention = self.given("attention", lambda run: pass_address(run.plan))
        if rotary is not None and has_plan(rotary) and not rotary.by_length:
            positions = self._rows_of_pass("positions", torch.int64)
            self.cos, self.sin = rotary.plan(self.plan, positions, self.rows, backend)
            return
        width, angles = 0 if rotary is None else rotary.parameters.rotary_dim, torch.float32
        self.cos, self.sin = (
            Buffer(self.rows, width, angles, self._rows_of_pass(name, angles, width).name)
            for name in ("cos", "sin")
        )

    def _rows_of_pass(self, name: str, dtype: torch.dtype, *shape: int) -> Pointer:
        """Where a tensor of every pass lies that has [T, *shape] or more."""

        def address(run: ForwardPass) -> int:
            tensor = getattr(run, name)
            return address_of(name, tensor, dtype, run.num_rows, *shape)

        return self.given(name, address)

    def given(self, name: str, address: AddressOf) -> Pointer:
        """An address that a layer asks of every pass; under one name it is asked for once."""
        self._given[name] = address
        return Pointer(name)

    def unless(self, name: str, is_better: IsBetter) -> None:
        """Passes that a layer would rather be called in; under one name it is asked once."""
        self._unless[name] = is_better

    def serves(self, current: ForwardPass) -> bool:
        """Whether no layer would rather be called in this pass.

        Those without a plan would where they want rows that are padded: planned ones are not.
        """
        if current.row_multiple > 1 and self.plan.num_torch_steps:
            return False
        unless = self._unless.values()
        return not unless or not any(is_better(current) for is_better in unless)

    def cache(self, layer: int, row_width: int) -> Pointer:
        """Where a layer's pages lie. row_width: numbers of a token's row in them."""
        self._row_widths[layer] = row_width
        return self.given(f"cache.{layer}", lambda run: run.caches[layer].data_ptr())

    def _check_caches(self, caches: tuple[torch.Tensor, ...]) -> None:
        """Raises ValueError for pages with rows of another width than was planned: a planned call
        would write past them. Looked at once for one state's pages.
        """
        if caches is self._checked:
            return
        for layer, wanted in self._row_widths.items():
            got = caches[layer].shape[2:].numel()
            if got != wanted:
                raise ValueError(
                    f"the pages of layer {layer} have rows of {got} numbers; wanted {wanted}, as "
                    "its attention was planned: where ranks share a model every layer that keeps "
                    "keys and values must be split, or none"
                )
        self._checked = caches

    def run(
        self, calls: PlannedCalls, current: ForwardPass, others: Mapping[str, int] | None = None
    ) -> None:
        """Runs the finished calls in a pass, after `begin`; others: addresses beside the pass's."""
        if self._row_widths:
            self._check_caches(current.caches)
        addresses = dict(others or {})
        for name in calls.pointers:
            if name not in addresses:
                addresses[name] = self._given[name](current)
        self.current.append(current)
        try:
            calls.run(addresses, torch.get_num_threads())
        finally:
            self.current.clear()

    def buffer(self, width: int, dtype: torch.dtype | None = None) -> Buffer:
        """A new [T, width] of the rows' dtype, or of another."""
        return Buffer(self.rows, width, dtype or self.dtype)

    def sublayer(self, layer: Any, x: Buffer, out_width: int | None = None) -> Buffer:
        """Plans a layer that takes [T, D] and this pass, and gives [T, out_width]; None: [T, D]."""
        if not has_plan(layer):
            return self.called(layer, x, out_width)
        planned: Buffer = layer.plan(self, x)
        return planned

    def called(self, layer: Any, x: Buffer, out_width: int | None = None) -> Buffer:
        """The same for a layer that has no plan: it is called with tensors in every pass."""
        out = self.buffer(x.width if out_width is None else out_width)
        self._step(lambda rows: (layer(rows, self.current[0]),), (x,), (out,))
        return out

    def block(self, block: Any, x: Buffer, residual: Buffer | None) -> tuple[Buffer, Buffer]:
        """Plans a `Block`, or another layer that takes two [T, D] and gives x and the residual."""
        if has_plan(block):
            planned: tuple[Buffer, Buffer] = block.plan(self, x, residual)
            return planned
        outs = self.buffer(x.width), self.buffer(x.width)
        self._step(
            lambda x, before: pair_of(block, block(x, before, self.current[0])), (x, residual), outs
        )
        return outs

    def linear(self, layer: Any, x: Buffer, out: Buffer | None = None) -> Buffer:
        """Plans a Linear, which takes the backend instead of the pass; out: see `Linear.plan`."""
        if has_plan(layer):
            planned: Buffer = layer.plan(self, x, out)
            return planned
        into = out or Buffer(x.rows, layer.out_features, x.dtype)
        self._step(lambda rows: (layer(rows, self.backend, into.dtype),), (x,), (into,))
        return into

    def norm(self, norm: Any, x: Buffer | Columns, into: Columns | None = None) -> Buffer:
        """Plans a norm without an add; into: columns for the normed ones, None for a new buffer."""
        x = x.columns() if isinstance(x, Buffer) else x
        into = into or Buffer(x.buffer.rows, x.width, x.buffer.dtype).columns()
        if has_plan(norm):
            norm.plan(self, x, into)
        else:
            read, write = x.of, into.of
            self.plan.torch(
                lambda rows, out: write(out).copy_(norm(read(rows), self.backend)),
                x.buffer,
                into.buffer,
            )
        return into.buffer

    def add_norm(
        self, norm: Any, x: Buffer, residual: Buffer | None, multiplier: float
    ) -> tuple[Buffer, Buffer]:
        """Plans `Norm.add`: returns (normed rows, the stream, which is updated in place)."""
        if has_plan(norm, "plan_add"):
            planned: tuple[Buffer, Buffer] = norm.plan_add(self, x, residual, multiplier)
            return planned
        outs = Buffer(x.rows, x.width, x.dtype), residual or x
        self._step(
            lambda x, before: norm.add(x, before, self.backend, multiplier), (x, residual), outs
        )
        return outs

    def _step(
        self,
        function: Callable[..., Iterable[torch.Tensor]],
        ins: Sequence[Buffer | None],
        outs: Sequence[Buffer],
    ) -> None:
        """Plans code that gets the tensors of `ins`, None for None; what it gives is copied."""
        given = [buffer for buffer in ins if buffer is not None]

        def call(*tensors: torch.Tensor) -> None:
            read = iter(tensors)
            made = function(*(None if buffer is None else next(read) for buffer in ins))
            for out, tensor in zip(read, made, strict=True):
                if tensor.dtype != out.dtype:
                    raise PluginError(
                        f"a layer without a plan gave {tensor.dtype} rows where the planned ones "
                        f"around it take {out.dtype}; convert them, or give its block no plan"
                    )
                out.copy_(tensor)

        self.plan.torch(call, *given, *outs)
