"""write_kv on the CPU: one indexed copy. Knows nothing of threads; PyTorch splits the rows."""

from __future__ import annotations

import torch


def write_kv(kv: torch.Tensor, cache: torch.Tensor, write_slots: torch.Tensor) -> None:
    """kv: [T', *row_shape]; cache: [P, S, *row_shape]; write_slots: [T] int64; mutates cache."""
    num_rows = write_slots.shape[0]
    rows = kv if kv.shape[0] == num_rows else kv[:num_rows]
    cache.flatten(0, 1).index_copy_(0, write_slots, rows)
