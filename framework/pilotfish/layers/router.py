"""Router: which experts each row goes to, and with which weights.

Knows: scores, groups of experts, the selection and its weights. Does not know: experts.
Axis letters: T packed tokens, D model width, E experts, S experts of a row, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels import router as kernels
from pilotfish.kernels.grouped_linear.native import PlannedGroups
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.router import choose_experts, eager
from pilotfish.kernels.router.native import plan_choose_experts
from pilotfish.layers.layer import Written
from pilotfish.layers.linear import Linear
from pilotfish.layers.pass_plan import PassPlan

Scoring: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Logits [T, E] float32 -> scores [T, E] float32, each row from its own logits."""

sigmoid_scores: Scoring = eager.sigmoid_scores
softmax_scores: Scoring = eager.softmax_scores
_TORCH = KernelBackend()
_KNOWN: dict[Scoring, kernels.Scoring] = {sigmoid_scores: "sigmoid", softmax_scores: "softmax"}


@attrs.frozen(kw_only=True)
class Routing(Written):
    """How experts are selected (DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2, eq. 12 to 16).

    num_experts: E. num_chosen: S, experts of a row. num_groups, num_kept_groups: experts stand in
    G groups of equal size, and only those of the best groups may be chosen; a group is as good as
    its two best experts together. normalize: a row's weights are divided by their sum.
    scale: weights are multiplied by it, after that. scoring: logits -> scores.
    Raises ConfigError when the numbers do not fit one another.
    """

    num_experts: int
    num_chosen: int
    num_groups: int = 1
    num_kept_groups: int = 1
    normalize: bool = True
    scale: float = 1.0
    scoring: Scoring = sigmoid_scores

    def __attrs_post_init__(self) -> None:
        experts, groups, kept = self.num_experts, self.num_groups, self.num_kept_groups
        if groups < 1 or experts < 1 or experts % groups:
            raise ConfigError(
                f"{experts} experts stand in {groups} groups; wanted groups of equal size"
            )
        if groups > 1 and experts // groups < 2:
            raise ConfigError(
                f"{experts} experts stand in {groups} groups; wanted at least 2 experts a group, "
                "since a group is judged by its two best"
            )
        if not 1 <= kept <= groups:
            raise ConfigError(f"{kept} groups of {groups} are kept; wanted 1 to {groups}")
        allowed = kept * (experts // groups)
        if not 1 <= self.num_chosen <= allowed:
            raise ConfigError(
                f"{self.num_chosen} experts of a row are chosen among {allowed} (of {kept} groups "
                f"of {experts // groups}); wanted 1 to {allowed}"
            )

    def __call__(
        self,
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        backend: KernelBackend = _TORCH,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits: [T, E] float32; bias: [E] float32, added to the scores for the selection only.

        Returns (choice [T, S] int64, ascending in each row, weights [T, S] float32). Of experts
        with equal scores torch.topk decides, on each row by itself; natively the lowest ids.
        """
        scores = logits if self.scoring in _KNOWN else self.scoring(logits)
        return choose_experts(scores, bias, **self._options(), backend=backend)

    def plan(
        self, run: PassPlan, logits: Buffer, bias: torch.Tensor | None
    ) -> tuple[Buffer, PlannedGroups]:
        """As `__call__`: the weights, and the rows sorted by the experts that were chosen."""
        if self.scoring not in _KNOWN:
            run.plan.torch(lambda rows: rows.copy_(self.scoring(rows)), logits)
        return plan_choose_experts(run.plan, logits, bias, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "scoring": _KNOWN.get(self.scoring, "given"),
            "num_chosen": self.num_chosen,
            "num_groups": self.num_groups,
            "num_kept_groups": self.num_kept_groups,
            "normalize": self.normalize,
            "scale": self.scale,
        }


class Router(Linear):
    """Logits in float32 whatever the run's dtype, then `Routing`.

    bias: whether there is a correction of the scores, [E].
    Parameters: weight [E, D], bias [E]; kept in float32.
    """

    takes_stored = False
    correction: torch.Tensor | None

    def __init__(self, width: int, routing: Routing, *, bias: bool = True) -> None:
        super().__init__(width, routing.num_experts, bias=bias)
        self.routing = routing
        self.correction = None

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Packs the weight in float32; the bias is no part of the product."""
        bias = tensors.pop("bias", None)
        self.correction = None if bias is None else bias.float()
        super().complete({"weight": tensors.pop("weight").float()}, backend)

    def choose(
        self, x: torch.Tensor, backend: KernelBackend, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T', D], padded -> of the first num_rows rows, as `Routing`: (choice, weights)."""
        rows = x if backend.name == "native" else x.float()
        logits = self(rows, backend, torch.float32)[:num_rows]
        return self.routing(logits, self.correction, backend)

    def plan_choose(self, run: PassPlan, x: Buffer) -> tuple[Buffer, PlannedGroups]:
        """As `choose`, of rows without padding; see `Routing.plan`."""
        logits = run.linear(self, x, Buffer(x.rows, self.routing.num_experts, torch.float32))
        return self.routing.plan(run, logits, self.correction)
