"""The choice of experts on a CPU, by the native library.

Knows: its arguments' record in native.h.
"""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p

import torch

from pilotfish.kernels.native import run
from pilotfish.kernels.native.numbers import address

_SCORINGS = {"given": 0, "sigmoid": 1, "softmax": 2}
_COST = 16
"""Elements of simple work in the time that one expert of a row takes."""


class Arguments(Structure):
    """A `pf_choose_experts`."""

    _fields_ = (
        ("logits", c_void_p),
        ("bias", c_void_p),
        ("choice", c_void_p),
        ("weights", c_void_p),
        ("rows", c_int64),
        ("experts", c_int64),
        ("row_stride", c_int64),
        ("chosen", c_int64),
        ("groups", c_int64),
        ("kept_groups", c_int64),
        ("scoring", c_int64),
        ("normalize", c_int64),
        ("scale", c_double),
    )


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
    rows, experts = logits.shape
    choice = torch.empty((rows, num_chosen), dtype=torch.int64)
    weights = logits.new_empty((rows, num_chosen))
    args = Arguments(
        logits.data_ptr(),
        address(bias),
        choice.data_ptr(),
        weights.data_ptr(),
        rows,
        experts,
        logits.stride(0),
        num_chosen,
        num_groups,
        num_kept_groups,
        _SCORINGS[scoring],
        normalize,
        scale,
    )
    run("choose_experts", args, _COST * rows * experts)
    return choice, weights
