"""The choice of experts by torch. Knows which of its calls work row by row."""

from __future__ import annotations

import torch

from pilotfish.platform.constants import constant


def choose_experts(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scoring: str,
    num_chosen: int,
    num_groups: int,
    num_kept_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [T, E]; returns (choice, weights), [T, S] each, as the public function."""
    scores = SCORINGS[scoring](logits)
    biased = scores if bias is None else scores + bias
    if num_kept_groups < num_groups:
        biased = without_other_groups(biased, num_groups, num_kept_groups)
    choice = biased.topk(num_chosen, dim=-1, sorted=False).indices.sort(dim=-1).values
    weights = scores.gather(1, choice)
    if normalize:
        weights = weights.div_(_sum_of_columns(weights).add_(1e-20))
    return choice, weights if scale == 1.0 else weights.mul_(scale)


def sigmoid_scores(logits: torch.Tensor) -> torch.Tensor:
    """`1 / (1 + exp(-x))`; torch.sigmoid rounds an array's last elements by other code."""
    return logits.neg().exp_().add_(constant(1.0, device=logits.device)).reciprocal_()


def softmax_scores(logits: torch.Tensor) -> torch.Tensor:
    """`exp(x) / sum(exp(x))` of each row; torch's kernel works row by row."""
    return torch.softmax(logits, -1)


SCORINGS = {"given": lambda logits: logits, "sigmoid": sigmoid_scores, "softmax": softmax_scores}


def without_other_groups(
    biased: torch.Tensor, num_groups: int, num_kept_groups: int
) -> torch.Tensor:
    """biased: [T, E] -> the same with -inf for experts outside of each row's best groups."""
    size = biased.shape[1] // num_groups
    grouped = biased.view(biased.shape[0], num_groups, size)
    best = grouped.topk(2, dim=-1, sorted=False).values
    kept = (best[..., 0] + best[..., 1]).topk(num_kept_groups, dim=-1, sorted=False).indices
    mask = torch.ones(grouped.shape[:2], dtype=torch.bool, device=biased.device)
    mask.scatter_(1, kept, False)
    return grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).view_as(biased)


def _sum_of_columns(x: torch.Tensor) -> torch.Tensor:
    """[T, S] contiguous -> [T, 1], each row in an order that does not depend on T.

    On a CPU torch.sum takes contiguous rows one by one. On a GPU it chooses its order by T, and so
    does cumsum: there columns are added from left to right.
    """
    if x.device.type == "cpu":
        return x.sum(1, keepdim=True)
    first, *rest = x.unbind(1)
    total = first.clone()
    for column in rest:
        total += column
    return total.unsqueeze(1)
