"""Router: which experts each row goes to, and with which weights, from its logits.

Knows: scores, groups of experts, the choice and its weights. Does not know: where logits come from.
Letters: T packed tokens, E experts, S experts of a row, G groups of experts.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.router import eager, native

Scoring: TypeAlias = Literal["given", "sigmoid", "softmax"]

__all__ = ["Scoring", "choose_experts"]


def choose_experts(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scoring: Scoring,
    num_chosen: int,
    num_groups: int = 1,
    num_kept_groups: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    backend: KernelBackend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (choice [T, S] int64, ascending in each row; weights [T, S] float32).

    logits: [T, E] float32, rows contiguous. scoring: what makes scores of them; "given": they are
    the scores. bias: [E] float32 or None, added to the scores for the choice only.
    num_groups, num_kept_groups: experts stand in G groups of equal size, of two experts at least
    where there are several, and only those of the best groups may be chosen; a group is as good as
    its two best experts together. normalize: a row's weights, its chosen scores, are divided by
    their sum. scale: they are multiplied by it, after that.
    Of experts with equal scores native takes those of the lowest ids; torch.topk decides on torch.
    Raises ValueError where the numbers of experts and groups do not fit together.
    A row's bits depend on its own logits and the bias only.
    Source: DeepSeek-AI 2024, "DeepSeek-V3", eq. 12 to 16.
    """
    native.want_groups(logits.shape[1], num_chosen, num_groups, num_kept_groups)
    make = native.choose_experts if backend.name == "native" else eager.choose_experts
    return make(
        logits,
        bias,
        scoring=scoring,
        num_chosen=num_chosen,
        num_groups=num_groups,
        num_kept_groups=num_kept_groups,
        normalize=normalize,
        scale=scale,
    )
