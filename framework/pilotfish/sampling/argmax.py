"""Argmax whose answer on ties is part of the contract: the lowest id.

Knows: rows of numbers. Does not know: what they mean. Axis letters: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lowest_argmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each row's maximum, the first one where several are equal, and its value.

    scores: [R, V] float32. Returns ids [R] int64 and values [R] float32 on the same device. The
    value is NaN if the row holds NaN; the id then means nothing.

    torch.argmax agrees with this today; numpy promises the first maximum, and is faster.
    """
    if scores.device.type == "cpu":
        ids = torch.from_numpy(scores.numpy().argmax(axis=1))
        return ids, scores.gather(1, ids[:, None])[:, 0]
    return _first_of_maxima(scores)


def _first_of_maxima(scores: Tensor) -> tuple[Tensor, Tensor]:
    """As `lowest_argmax`, by comparisons only: no promise of the device's argmax is needed."""
    values = scores.amax(-1, keepdim=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    first = torch.where(scores == values, places, scores.shape[1] - 1).amin(-1)
    return first, values[:, 0]
