"""The weighted sum of rows by torch's own operations. Knows no Triton."""

from __future__ import annotations

from functools import lru_cache

import torch


def combine_rows(
    x: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    last: torch.Tensor | None,
    num_rows: int,
) -> torch.Tensor:
    """As the public function: a row's terms are a bag of embeddings, which torch adds in order."""
    total: torch.Tensor = torch.embedding_bag(
        x.float(),
        places.flatten(),
        _bags(*places.shape, num_rows, places.device),
        False,  # no gradients by frequency
        0,  # sum
        False,  # no sparse gradients
        weights.flatten(),
    )[0]
    if last is not None:
        total.add_(last)
    return total.to(x.dtype)


@lru_cache(maxsize=256)
def _bags(filled: int, num_terms: int, num_rows: int, device: torch.device) -> torch.Tensor:
    """[num_rows] int64: where each row's terms begin; the rows after the filled ones have none.

    Shared by all who ask: never to be written.
    """
    with torch.inference_mode(False):  # who asks first may be in it, and others not
        return torch.arange(num_rows, device=device).clamp_(max=filled).mul_(num_terms)
