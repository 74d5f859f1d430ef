"""MixtureOfExperts: a feed-forward made of many small ones, of which each row takes a few.

Knows: router, experts, shared experts and their sum. Does not know: how a choice is scored, or
where experts are.
Axis letters: T packed tokens, D model width, I an expert's width, E experts, S experts of a row,
R rows sorted by expert.
"""

from __future__ import annotations

import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.combine_rows.native import plan_combine_rows
from pilotfish.kernels.grouped_linear import group_rows
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.layers.experts import PLAIN, ExpertFormat, Experts
from pilotfish.layers.experts_over_replicas import ExpertsOverReplicas
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.pass_plan import PassPlan, has_plan, replaced
from pilotfish.layers.router import Router, Routing
from pilotfish.layers.splitting import is_plain, not_split
from pilotfish.layers.spread_experts import SpreadExperts
from pilotfish.parallel.group import Groups


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
        """Leaves this rank some of the experts, whole. Router and sums are every rank's own; where
        replicas share the experts, those of its rows.
        """
        super().shard(groups, name)
        experts, group = self.experts, groups.expert
        if group.is_alone:
            return
        if not is_plain(experts, Experts):
            raise not_split(experts, f"{name}experts", "they are not the library's")
        if experts.num_experts % group.size:
            raise _not_divided(experts.num_experts, groups, name)
        num_chosen = self.router.routing.num_chosen
        if groups.num_expert_replicas == 1:
            self.experts = SpreadExperts.of(experts, group, num_chosen)
            return
        if own := replaced(self, MixtureOfExperts):
            told = ", ".join(f"`{one}`" for one in own)
            raise not_split(self, name, f"replicas share its experts, and it has {told} of its own")
        self.experts = ExpertsOverReplicas.of(experts, groups, num_chosen)

    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        """x: [T, D] -> a new [T, D]; padding rows of the pass go to no routed expert."""
        backend = run.backend
        choice, weights = self.router.choose(x, backend, run.num_rows)
        if isinstance(self.experts, ExpertsOverReplicas):
            shared = None if self.shared is None else self.shared(x, run)
            return self.experts.mixed(x, choice, weights, shared, backend)
        if isinstance(self.experts, Experts):
            self.experts.count(choice)
        groups = group_rows(
            choice, self.experts.num_experts, backend=backend, row_multiple=run.row_multiple
        )
        routed = self.experts(x, groups, backend)
        shared = None if self.shared is None else self.shared(x, run)
        return combine_rows(
            routed, groups.places, weights, shared, num_rows=x.shape[0], backend=backend
        )

    def plan(self, run: PassPlan, x: Buffer) -> Buffer:
        """As `__call__`, which is called where loads are counted."""
        router, parts = self.router, (self.router.routing, self.experts)
        is_planned = has_plan(router, "plan_choose") and all(map(has_plan, parts))
        if not is_planned or getattr(self.experts, "loads", None) is not None:
            return run.called(self, x)
        weights, groups = router.plan_choose(run, x)
        routed = self.experts.plan(run, x, groups)
        shared = None if self.shared is None else run.sublayer(self.shared, x)
        return plan_combine_rows(run.plan, routed, groups.places, weights, shared)


def _not_divided(num_experts: int, groups: Groups, name: str) -> ConfigError:
    size, replicas = groups.tensor.size, groups.data.size
    within = [n for n in range(1, size + 1) if size % n == 0]
    over = [size * n for n in range(2, replicas + 1) if replicas % n == 0]
    fits = ", ".join(str(n) for n in within + over if num_experts % n == 0)
    given = f"tensor_parallel={size}" + (f", data_parallel={replicas}" if replicas > 1 else "")
    return ConfigError(
        f"{name}experts: {num_experts} experts over {groups.expert.size} ranks; with {given} "
        f"wanted expert_parallel one of {fits}"
    )
