"""Experts: the small feed-forwards of a mixture, run on rows that are sorted by expert.

Knows: their weights, plain or INT4, and which of them this rank has. Does not know: which row goes
where, or what is made of the results.
Axis letters: T packed tokens, D model width, I an expert's width, E experts, R rows sorted by
expert.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.grouped_linear import (
    GroupedWeight,
    GroupedWeightBuilder,
    RowGroups,
    grouped_linear,
)
from pilotfish.kernels.grouped_linear.native import PlannedGroups, plan_grouped_linear
from pilotfish.kernels.int4 import COLUMNS_PER_WORD
from pilotfish.kernels.linear import LinearWeight
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.swiglu import swiglu
from pilotfish.kernels.swiglu.native import plan_swiglu
from pilotfish.layers.layer import Layer, Shape
from pilotfish.layers.pass_plan import PassPlan
from pilotfish.parallel.shard import Shard
from pilotfish.weights import StoredRows


@attrs.frozen(kw_only=True)
class ExpertFormat:
    """How the weights of all experts of a layer are kept.

    group_size: columns that share a scale where the weights are INT4 (see `kernels.int4`); None
    where they are of the run's dtype. gate_up and down may differ.
    """

    gate_up: int | None = None
    down: int | None = None


PLAIN = ExpertFormat()


class Experts(Layer):
    """E gated feed-forwards, run on rows sorted by expert.

    dtype: of the rows; what INT4 weights are multiplied in.
    Parameters of expert e: "{e}.gate_up" [2I, D] (gate first) and "{e}.down" [D, I]; of INT4 ones
    "{e}.gate_up_packed" [2I, D/8] int32, "{e}.gate_up_scale" [2I, D/group_size] and
    "{e}.gate_up_shape" [2, 2] (what the file says of them, not kept), likewise down.
    They arrive one expert at a time, so that no layer lies in memory twice; none stays mapped: so
    many parts of a file cannot.
    own: the experts whose weights this rank has.
    loads: [E] int64, rows that each expert was given; None where nobody counts them.
    """

    loads: torch.Tensor | None = None
    gate_up: GroupedWeight
    down: GroupedWeight

    def __init__(
        self,
        width: int,
        expert_width: int,
        num_experts: int,
        *,
        dtype: torch.dtype,
        format: ExpertFormat = PLAIN,
    ) -> None:
        self.num_experts = num_experts
        self.own = range(num_experts)
        self.dtype = dtype
        self._parts = {
            "gate_up": (2 * expert_width, width, format.gate_up),
            "down": (width, expert_width, format.down),
        }
        self._waiting_pairs: dict[str, torch.Tensor] = {}
        self._builders: dict[str, GroupedWeightBuilder] = {}
        for part, (rows, columns, group_size) in self._parts.items():
            for name, shape in _shapes(part, rows, columns, group_size).items():
                for expert in range(num_experts):
                    self.declare(f"{expert}.{name}", shape)

    def assign(self, name: str, tensor: torch.Tensor | StoredRows, backend: KernelBackend) -> None:
        """As `Layer.assign`, one expert at a time."""
        assert not isinstance(tensor, StoredRows), name
        shapes = self._declared()
        if name not in shapes:
            raise KeyError(
                f"{self.num_experts} experts want {sorted(shapes)[:4]} ..., got {name!r}"
            )
        assert tuple(tensor.shape) == shapes[name], (name, tensor.shape, shapes[name])
        expert, _, kind = name.partition(".")
        part = kind.removesuffix("_packed").removesuffix("_scale")
        scale = None
        if kind.endswith("_shape"):
            return
        rows, columns, group_size = self._parts[part]
        if group_size is not None:
            self._waiting_pairs[name] = tensor
            pair = [f"{expert}.{part}_packed", f"{expert}.{part}_scale"]
            if not all(one in self._waiting_pairs for one in pair):
                return
            tensor, scale = (self._waiting_pairs.pop(one) for one in pair)
        if part not in self._builders:
            self._builders[part] = GroupedWeightBuilder(
                len(self.own), rows, columns, dtype=self.dtype, backend=backend
            )
        builder = self._builders[part]
        builder.add(int(expert) - self.own.start, tensor, scale)
        if builder.is_complete:
            setattr(self, part, self._builders.pop(part).finish())

    def keep_experts(self, own: range) -> None:
        """Leaves this rank some of the experts."""
        self.own, nothing = own, Shard.rows()
        for name in self._declared():
            if int(name.partition(".")[0]) not in own:
                self.keep(name, nothing)

    @property
    def width(self) -> int:
        """D."""
        return self._parts["down"][0]

    def count_loads(self) -> None:
        """From now on `loads` are counted, from 0."""
        self.loads = torch.zeros(self.num_experts, dtype=torch.int64)

    def count(self, choice: torch.Tensor) -> None:
        """Adds a pass to `loads`, where they are counted. choice: [T, S] int64, of its rows."""
        if self.loads is not None:
            self.loads += torch.bincount(choice.flatten().cpu(), minlength=self.num_experts)

    def linear_weights(self) -> list[LinearWeight]:
        """One weight of each shape and form that rows are multiplied with on torch."""
        return [weight.separate[0] for weight in (self.gate_up, self.down) if weight.separate]

    def __call__(self, x: torch.Tensor, groups: RowGroups, backend: KernelBackend) -> torch.Tensor:
        """x: [T, D], which `groups` sorts by expert -> [R, D], sorted."""
        gate_up = grouped_linear(x, self.gate_up, groups, backend=backend, gather=True)
        return grouped_linear(swiglu(gate_up, backend=backend), self.down, groups, backend=backend)

    def plan(self, run: PassPlan, x: Buffer, groups: PlannedGroups) -> Buffer:
        """As `__call__`."""
        gate_up = plan_grouped_linear(run.plan, x, self.gate_up, groups, gather=True)
        inner = plan_swiglu(run.plan, gate_up)
        return plan_grouped_linear(run.plan, inner, self.down, groups, gather=False)


def _shapes(part: str, rows: int, columns: int, group_size: int | None) -> dict[str, Shape]:
    if group_size is None:
        return {part: (rows, columns)}
    if group_size % COLUMNS_PER_WORD or columns % group_size:
        raise ConfigError(
            f"the experts' {part} has {columns} columns in INT4 groups of {group_size}; wanted "
            f"groups of a multiple of {COLUMNS_PER_WORD} that divide {columns}"
        )
    return {
        f"{part}_packed": (rows, columns // COLUMNS_PER_WORD),
        f"{part}_scale": (rows, columns // group_size),
        f"{part}_shape": (2 if part == "gate_up" else 1, 2),
    }
