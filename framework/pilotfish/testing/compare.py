"""Comparisons that say where two tensors part.

Knows: bits and rows. Does not know: what the tensors mean.
Axis letters: T rows, V columns.
"""

from __future__ import annotations

from itertools import zip_longest

import torch

from pilotfish.engine.outputs import RequestOutput
from pilotfish.testing.outcome import Broken, want


def want_same_bits(got: torch.Tensor, wanted: torch.Tensor, where: str) -> None:
    """Raises Broken naming the first row that differs in a bit, or that is not finite.

    got, wanted: [T, V], the same dtype. where: what was compared, in words.
    """
    want_finite(got, where)
    want(
        got.shape == wanted.shape and got.dtype == wanted.dtype,
        f"{where}: {list(got.shape)} {got.dtype}",
        f"{list(wanted.shape)} {wanted.dtype}",
    )
    if torch.equal(got, wanted):
        return
    rows = (got != wanted).flatten(1).any(1).nonzero()[:, 0].tolist()
    gap = float((got[rows].double() - wanted[rows].double()).abs().max())
    raise Broken(
        f"{where}: {len(rows)} of {got.shape[0]} rows differ, the first is row {rows[0]}, "
        f"by up to {gap:.3g}",
        "the same bits in every row",
    )


def want_same_answer(ours: RequestOutput, theirs: RequestOutput, where: str, when: str) -> None:
    """Raises Broken naming what two answers part in: tokens, an end, the first log probability.

    where, when: in words, what gave ours and what gave theirs.
    """
    got, wanted = list(ours.token_ids), list(theirs.token_ids)
    want(got == wanted, f"{where}: {got}", f"{wanted}, {when}")
    where = f"{where}, with the same tokens"
    ends = ours.finish_reason, theirs.finish_reason
    want(ends[0] == ends[1], f"{where}: {ends[0]!r}", f"the end {ends[1]!r}, {when}")
    for kind, mine, others in (
        ("token", ours.logprobs, theirs.logprobs),
        ("prompt token", ours.prompt_logprobs, theirs.prompt_logprobs),
    ):
        for place, (one, other) in enumerate(zip_longest(mine or (), others or ())):
            same = f"log probabilities {other} of {kind} {place}, {when}"
            want(one == other, f"{where}: {one}", same)


def want_finite(got: torch.Tensor, where: str) -> None:
    """Raises Broken naming the first row that holds NaN or an infinity."""
    bad = (~got.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise Broken(
            f"{where}: NaN or an infinity in row {bad[0]}",
            "finite numbers: rows that nobody may read were poisoned with NaN",
        )


def want_near(got: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, where: str) -> None:
    """Raises Broken when `got` is further from `exact` than twice `eager` is.

    Both as root of the mean square and at worst. got, eager: [T, V]; exact: [T, V] float64.
    """
    want(
        got.shape == exact.shape,
        f"{where}: the shape {list(got.shape)}",
        f"the oracle's {list(exact.shape)}",
    )
    for kind, ours, theirs in zip(
        ("root mean square", "largest"), _errors(got, exact), _errors(eager, exact), strict=True
    ):
        want(
            ours <= 2 * theirs,
            f"{where}: the {kind} error against float64 is {ours:.3g}",
            f"at most {2 * theirs:.3g}, twice that of the oracle in the same dtype",
        )


def _errors(got: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    gap = (got.double() - exact).abs()
    return float(gap.square().mean().sqrt()), float(gap.max())


def same_memory(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[T] bool: which rows hold the same bytes, NaN included."""
    pairs = (tensor.contiguous().view(torch.uint8) for tensor in (got, wanted))
    first, second = (tensor.flatten(1) for tensor in pairs)
    return (first == second).all(1)
