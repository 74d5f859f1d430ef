"""The choice of experts as the definition reads, row by row. Slow: the others are judged by it."""

from __future__ import annotations

import torch


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
    """As the public function; of equal scores the lowest ids. In the logits' own dtype."""
    scores = {"given": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1)}[scoring]
    biased = scores if bias is None else scores + bias
    size = logits.shape[1] // num_groups
    choice = []
    for row in biased.tolist():
        groups = [range(g * size, (g + 1) * size) for g in range(num_groups)]
        if num_kept_groups < num_groups:
            groups.sort(key=lambda members: -sum(sorted(row[e] for e in members)[-2:]))
        allowed = sorted(e for members in groups[:num_kept_groups] for e in members)
        choice.append(sorted(sorted(allowed, key=lambda e: -row[e])[:num_chosen]))
    chosen = torch.tensor(choice, dtype=torch.int64).view(-1, num_chosen)
    weights = scores.gather(1, chosen)
    if normalize:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return chosen, weights * scale
