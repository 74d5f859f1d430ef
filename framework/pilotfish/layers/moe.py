"""MixtureOfExperts: a feed-forward made of many small ones, of which each row takes a few.

Knows: router, experts, shared experts and their sum. Does not know: how a choice is scored.
Axis letters: T packed tokens, D model width, I an expert's width, E experts, S experts of a row,
R rows sorted by expert.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.combine_rows.native import plan_combine_rows
from pilotfish.kernels.grouped_linear import (
    GroupedWeight,
    GroupedWeightBuilder,
    RowGroups,
    group_rows,
    grouped_linear,
)
from pilotfish.kernels.grouped_linear.native import PlannedGroups, plan_grouped_linear
from pilotfish.kernels.int4 import COLUMNS_PER_WORD
from pilotfish.kernels.linear import LinearWeight
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.swiglu import swiglu
from pilotfish.kernels.swiglu.native import plan_swiglu
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer, Shape
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.pass_plan import PassPlan, has_plan
from pilotfish.layers.router import Router, Routing
from pilotfish.layers.splitting import is_plain, not_split
from pilotfish.parallel.collectives import all_gather
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.shard import Shard
from pilotfish.parallel.traffic import Collective, PassRows
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
    """

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


class SpreadExperts(Experts):
    """Experts that the ranks of a group share: each runs its own, and all get every row's results.

    Every rank sorts the same rows, so it knows what the others send.
    """

    plan = None  # type: ignore[assignment]
    group: Group

    @classmethod
    def of(cls, whole: Experts, group: Group) -> SpreadExperts:
        """In the place of experts that were given no tensors."""
        made = cls.__new__(cls)
        vars(made).update(vars(whole))
        made.group = group
        made.keep_experts(group.share(whole.num_experts))
        return made

    def __call__(self, x: torch.Tensor, groups: RowGroups, backend: KernelBackend) -> torch.Tensor:
        """As `Experts`: [R, D], the same on every rank."""
        if groups.blocks is not None:
            raise ConfigError("experts over several ranks run on native or torch kernels")
        counts = [
            len(groups.rows_within(self.group.share_of(rank, self.num_experts)))
            for rank in range(self.group.size)
        ]
        own = x.new_zeros((max(counts), x.shape[1]))
        if counts[self.group.rank]:
            own[: counts[self.group.rank]] = super().__call__(x, groups.within(self.own), backend)
        parts = zip(all_gather(self.group, own), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])


class MixtureOfExperts(Layer):
    """`shared(x) + sum_s weight_s * expert_s(x)` over the experts that the router chooses.

    expert_width: I. shared_width: the width of the shared experts together; 0: there are none.
    dtype: of the rows. format: how the experts' weights are kept.
    A row's sum is taken in float32, experts in ascending order, the shared ones last, and rounded
    once. A row's bits depend on that row only, whoever shares its experts.
    Parameters: router.weight [E, D], router.bias [E] (both float32), experts.{e}... (see
    `Experts`), shared.gate_up.weight, shared.down.weight.
    """

    def __init__(
        self,
        width: int,
        expert_width: int,
        routing: Routing,
        *,
        dtype: torch.dtype,
        shared_width: int = 0,
        router_bias: bool = True,
        format: ExpertFormat = PLAIN,
    ) -> None:
        self.router = Router(width, routing, bias=router_bias)
        self.experts = Experts(width, expert_width, routing.num_experts, dtype=dtype, format=format)
        self.shared = GatedMLP(width, shared_width) if shared_width else None

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank some of the experts, whole; router and sums are every rank's own."""
        super().shard(groups, name)
        experts, group = self.experts, groups.expert
        if group.is_alone:
            return
        if not is_plain(experts, Experts):
            raise not_split(experts, f"{name}experts", "they are not the library's")
        if experts.num_experts % group.size:
            size = groups.tensor.size
            fits = [n for n in range(1, size + 1) if size % n == experts.num_experts % n == 0]
            raise ConfigError(
                f"{name}experts: {experts.num_experts} experts over {group.size} ranks; with "
                f"tensor_parallel={size} wanted expert_parallel one of {', '.join(map(str, fits))}"
            )
        self.experts = SpreadExperts.of(experts, group)

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> a new [T, D]; padding rows of the pass go to no routed expert."""
        backend = run.backend
        choice, weights = self.router.choose(x, backend, run.num_rows)
        groups = group_rows(
            choice, self.experts.num_experts, backend=backend, row_multiple=run.row_multiple
        )
        routed = self.experts(x, groups, backend)
        shared = None if self.shared is None else self.shared(x, run)
        return combine_rows(
            routed, groups.places, weights, shared, num_rows=x.shape[0], backend=backend
        )

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Every rank's results go to all, as many rows as the fullest rank has: between equally
        many on all ranks and as many as one rank's experts can get.
        """
        if not isinstance(self.experts, SpreadExperts):
            return ()
        size, chosen = self.experts.group.size, self.router.routing.num_chosen
        fewest = -(-run.rows * chosen // size)
        most = run.rows * min(chosen, len(self.experts.own))
        row = self.router.in_features * run.itemsize
        return (Collective("all_gather", size, fewest * row, most * row),)

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__`."""
        router, parts = self.router, (self.router.routing, self.experts)
        if not has_plan(router, "plan_choose") or not all(map(has_plan, parts)):
            return run.called(self, x)
        weights, groups = router.plan_choose(run, x)
        routed = self.experts.plan(run, x, groups)
        shared = None if self.shared is None else run.sublayer(self.shared, x)
        return plan_combine_rows(run.plan, routed, groups.places, weights, shared)


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
