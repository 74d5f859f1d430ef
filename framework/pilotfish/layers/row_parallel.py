"""RowParallelLinear: a product whose columns are cut into slices, which ranks may share.

Knows: slices, partial products, and that their sum is made in a fixed order. Does not know: the
order (`parallel/reduction.py`), or what the layer is for.
Axis letters: T packed tokens, K input width, O output width, S slices, s those of this rank.
"""

from __future__ import annotations

from typing import Any

import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear, prepare_blocks, prepare_linear
from pilotfish.kernels.linear.planned import plan_slices
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.sum_slices import sum_slices
from pilotfish.kernels.sum_slices.native import plan_sum_slices
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.parallel.group import Groups
from pilotfish.parallel.reduction import (
    all_reduce,
    are_nodes,
    goes_in_parts,
    most_nodes,
    part_of,
)
from pilotfish.parallel.shard import Shard
from pilotfish.parallel.traffic import Collective, PassRows
from pilotfish.weights import StoredRows


class RowParallelLinear(Layer):
    """`x @ weight.T + bias`: S partial products in float32, joined in the order of a fixed tree.

    On torch and triton a product is rounded to the rows' dtype before it is a term.
    whole: the layer in whose place it stands; it was given no tensors. groups: see `Groups`. name:
    of the layer, for messages. The bias is added once, to the sum, which is then rounded once.
    partials: s weights of [O, K/S], this rank's slices in order.
    Parameters: as the whole's; of the weight this rank has s/S of the columns.
    Raises ConfigError where K has no S slices.
    """

    takes_stored = True
    partials: tuple[LinearWeight, ...]
    bias: torch.Tensor | None

    def __init__(self, whole: Linear, groups: Groups, name: str) -> None:
        shapes = whole.parameter_shapes()
        self.num_slices, self.group = groups.reduction_slices, groups.tensor
        self.out_features, num_columns = shapes["weight"]
        if num_columns % self.num_slices:
            raise ConfigError(
                f"{name}: a product of {num_columns} columns has no {self.num_slices} slices of "
                "one size (reduction_slices, or tensor_parallel); wanted a divisor of "
                f"{num_columns}: {_nearest_divisors(num_columns, self.num_slices)}"
            )
        self.slice_width = num_columns // self.num_slices
        own = self.group.share(self.num_slices)
        self.in_features = len(own) * self.slice_width
        for kind, shape in shapes.items():
            self.declare(kind, shape)
        self.keep("weight", Shard.columns(*(self._columns(i) for i in own)))

    def _columns(self, place: int) -> range:
        return range(place * self.slice_width, (place + 1) * self.slice_width)

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Prepares every slice by itself; native ones are views of the file's rows."""
        weight, self.bias = tensors["weight"], tensors.get("bias")
        partials = []
        for place in range(self.in_features // self.slice_width):
            columns = Shard.columns(self._columns(place))
            if isinstance(weight, StoredRows):
                stored = weight.shard(columns)
                partials.append(prepare_blocks(stored.parts, dtype=stored.dtype))
                continue
            part = columns.of(weight)
            if backend.name != "native":
                part = part.contiguous()
            partials.append(prepare_linear(part, backend=backend))
        self.partials = tuple(partials)

    def __call__(
        self, x: torch.Tensor, backend: KernelBackend, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x: [T, K of this rank] -> a new [T, O] of the same dtype, or of out_dtype: the same rows
        on every rank.
        """
        parts = torch.split(x, self.slice_width, dim=1)
        terms = [
            linear(part, weight, backend=backend, out_dtype=torch.float32)
            for part, weight in zip(parts, self.partials, strict=True)
        ]
        dtype = out_dtype or x.dtype
        if self.group.is_alone:
            together, count = torch.cat(terms, dim=1), len(terms)
            return sum_slices(together, count, self.bias, out_dtype=dtype, backend=backend)
        return self._whole(terms).to(dtype)

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Every rank's terms go to all; or a part of them to each, and its sum to all."""
        size = self.group.size
        if size == 1:
            return ()
        terms, itemsize = most_nodes(size, self.num_slices), torch.float32.itemsize
        count = run.rows * self.out_features
        if not goes_in_parts(size, count):
            return (Collective.of("all_gather", size, terms * count * itemsize),)
        part = part_of(size, count) * itemsize
        return (
            Collective.of("all_to_all", size, terms * size * part),
            Collective.of("all_gather", size, part),
        )

    def _whole(self, terms: list[torch.Tensor]) -> torch.Tensor:
        """terms: of this rank's slices, or their sum, [T, O] float32 each -> [T, O] float32."""
        whole = all_reduce(self.group, terms, self.num_slices)
        return whole if self.bias is None else whole.add_(self.bias.float())

    def plan(self, run: PassPlan, x: Buffer, out: Buffer | None = None) -> Buffer:
        """As `__call__`; what ranks say to one another is a step between native calls."""
        out = out or Buffer(x.rows, self.out_features, x.dtype)
        width, count = self.out_features, len(self.partials)
        terms = Buffer(x.rows, count * width, torch.float32)
        plan_slices(run.plan, x, self.partials, terms)
        if self.group.is_alone:
            return plan_sum_slices(run.plan, terms, count, self.bias, out)
        if count > 1 and are_nodes(self.group.size, self.num_slices):
            joined = Buffer(x.rows, width, torch.float32)
            terms = plan_sum_slices(run.plan, terms, count, None, joined)
        run.plan.torch(self._whole_into, terms, out)
        return out

    def _whole_into(self, terms: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(self._whole(list(torch.split(terms, self.out_features, dim=1))))


def _nearest_divisors(number: int, wanted: int) -> str:
    """The next smaller one, and the next larger."""
    less = next(n for n in range(min(wanted, number), 0, -1) if number % n == 0)
    more = next((n for n in range(wanted, number + 1) if number % n == 0), None)
    return f"{less}" if more is None else f"{less} or {more}"
