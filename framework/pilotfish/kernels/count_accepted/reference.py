"""How many drafts agree, as the definition reads. Slow: the others are judged by it."""

from __future__ import annotations

from itertools import pairwise

import torch


def count_accepted(
    tokens: torch.Tensor, drafts: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """tokens, drafts: [R]; offsets: [B+1]; returns [B] int64, as the public function."""
    counts = []
    bounds = offsets.tolist()
    for start, stop in pairwise(bounds):
        count = 0
        while start + count < stop - 1 and tokens[start + count] == drafts[start + count]:
            count += 1
        counts.append(count)
    return torch.tensor(counts, dtype=torch.int64, device=tokens.device)
