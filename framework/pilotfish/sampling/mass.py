"""Softmax weights as whole numbers: sums that no order of addition can change.

Knows: fixed-point weights, their totals and the log normaliser. Does not know: who asks for them.
Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

MASS_BITS = 42
"""The likeliest token weighs 2**42: up to 2**20 tokens sum without overflow of int64."""


def token_mass(logits: Tensor, largest: Tensor) -> Tensor:
    """exp(logits - largest) in units of 2**-42, cut to whole numbers.

    logits: [R, n] float32, any subset of a row. largest: [R, 1] float32, the row's maximum, finite.
    Returns [R, n] int64.

    A sum of floats depends on its order, and the order that torch picks depends on the shape, the
    alignment and the number of rows; sums of these integers do not, so that a cut made by them is
    the same whatever is computed beside the row. Each weight is off by one float32 rounding and
    2**-42, as near as a float32 softmax.

    On the CPU numpy does it: torch's exp forks threads even for a few numbers, which costs
    milliseconds where the cores are shared with other work.
    """
    if logits.device.type == "cpu":
        weights = logits.numpy() - largest.numpy()
        np.exp(weights, out=weights)
        weights *= np.float32(1 << MASS_BITS)
        return torch.from_numpy(weights.astype(np.int64))
    return (logits - largest).exp_().mul_(float(1 << MASS_BITS)).to(torch.int64)


def log_normalizer(logits: Tensor, largest: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row.

    logits: [R, V] float32. largest: [R, 1] float32, the row's maximum, finite. Returns [R] float64.
    """
    total = token_mass(logits, largest).sum(-1)
    return largest[:, 0].double() + (total.double().log() - MASS_BITS * math.log(2.0))
