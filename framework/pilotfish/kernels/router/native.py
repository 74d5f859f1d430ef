"""The choice of experts on a CPU, by the native library.

Knows: its arguments' record in native.h. Planned, the rows are sorted by expert in the same call.
"""

from __future__ import annotations

from ctypes import Structure

import torch

from pilotfish.kernels.grouped_linear.native import PlannedGroups
from pilotfish.kernels.native import run
from pilotfish.kernels.native.buffers import Buffer
from pilotfish.kernels.native.numbers import address, address_of, in_rows, parameter, record_fields
from pilotfish.kernels.native.plan import Plan

_SCORINGS = {"given": 0, "sigmoid": 1, "softmax": 2}
_COST = 16
"""Elements of simple work in the time that one expert of a row takes."""


class Arguments(Structure):
    """A `pf_choose_experts`."""

    _fields_ = (
        *record_fields(
            pointers="logits bias choice weights",
            ints="rows experts row_stride chosen groups kept_groups scoring normalize",
            doubles="scale",
        ),
        *record_fields(pointers="sorted_rows places spans"),
    )


def want_groups(num_experts: int, num_chosen: int, num_groups: int, num_kept_groups: int) -> None:
    """Raises ValueError where so many experts cannot be chosen so."""
    size = num_experts // max(num_groups, 1)
    is_cut = num_kept_groups < num_groups
    if not (
        1 <= num_kept_groups <= num_groups
        and num_experts == num_groups * size
        and size >= (2 if is_cut else 1)
        and 0 <= num_chosen <= num_kept_groups * size
    ):
        raise ValueError(
            f"{num_chosen} of {num_experts} experts are chosen from {num_kept_groups} of "
            f"{num_groups} groups; wanted equal groups, of two experts at least where some are not "
            "kept, and no more chosen than the kept ones hold"
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
    logits = in_rows(logits)
    rows, experts = logits.shape
    bias = parameter("bias", bias, experts)
    choice = torch.empty((rows, num_chosen), dtype=torch.int64)
    weights = logits.new_empty((rows, num_chosen))
    args = Arguments(
        address_of("logits", logits, torch.float32, rows, experts, apart=True),
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


def plan_choose_experts(
    plan: Plan,
    logits: Buffer,
    bias: torch.Tensor | None,
    *,
    scoring: str,
    num_chosen: int,
    num_groups: int,
    num_kept_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[Buffer, PlannedGroups]:
    """Plans it for [T, E]; returns the weights [T, S], and the rows sorted by expert."""
    assert logits.dtype == torch.float32, logits.dtype
    want_groups(logits.width, num_chosen, num_groups, num_kept_groups)
    bias = parameter("bias", bias, logits.width)
    choice = Buffer(logits.rows, num_chosen, torch.int64)
    weights = Buffer(logits.rows, num_chosen, torch.float32)
    groups = PlannedGroups.of(choice, logits.width)
    plan.keep(bias, groups.spans)
    plan.call(
        "choose_experts",
        Arguments,
        logits=logits,
        bias=address(bias),
        choice=choice,
        weights=weights,
        rows=logits.rows,
        experts=logits.width,
        row_stride=logits.width,
        chosen=num_chosen,
        groups=num_groups,
        kept_groups=num_kept_groups,
        scoring=_SCORINGS[scoring],
        normalize=normalize,
        scale=scale,
        sorted_rows=groups.rows,
        places=groups.places,
        spans=groups.spans.data_ptr(),
    )
    return weights, groups
