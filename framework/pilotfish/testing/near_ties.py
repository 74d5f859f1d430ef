"""want_like_oracle: logits against an oracle, with an eye on rows in which rounding chooses.

Knows: that a choice (of experts, say) between scores that are equal but for rounding may fall
either way, for the oracle too. Does not know: routers.
Axis letters: T rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from pilotfish.testing.compare import want_near
from pilotfish.testing.oracle import Oracle
from pilotfish.testing.outcome import Broken, NotKnown

NUDGES = 64
"""Passes of the oracle with weights moved by their rounding, until one chooses as we did."""
JUMP = 8.0
"""Times the oracle's usual error of the rows around a row: rounding alone makes rows differ by
less, and another expert by more."""
TURNS = 8
"""Texts of the same tokens, begun at another one each, where a choice reaches most rows of one."""
AROUND = 16
"""Rows on each side of it: angles are rounded further off the later a row stands."""

Run = Callable[[Sequence[int]], torch.Tensor]


def want_like_oracle(
    oracle: Oracle, tokens: Sequence[int], dtype: str, run: Run, where: str
) -> None:
    """Raises Broken where logits are further from the oracle's than twice its own error.

    run: tokens -> our logits [T, V]. A row in which the oracle's `eager` took another choice than
    its `exact` is no measure of errors. One in which we did must be as some pass of the oracle has
    it whose weights were moved by their rounding; rows after it attend to it, and where they are
    too far off the rows before such rows are judged, of some texts. Raises NotKnown where most rows
    are of a kind.
    """
    exact, eager = oracle.exact(tokens, dtype), oracle.eager(tokens, dtype)
    got = run(tokens).cpu()
    if got.shape != exact.shape:
        want_near(got, exact, eager, where)
    ours, theirs = _errors(got, exact), _errors(eager, exact)
    limit = JUMP * _usual(theirs)
    strays = (~(ours <= limit)).nonzero()[:, 0].tolist()
    steady = (ours <= limit) & (theirs <= limit)
    if len(strays) > len(tokens) // 2:
        want_near(got, exact, eager, where)
    if int(steady.sum()) < len(tokens) // 2:
        raise NotKnown(f"{where}: the oracle's `eager` is not its `exact` in most rows")
    gaps = _witnessed(oracle.nudged(tokens, dtype), got, strays, limit)
    for row, gap in gaps.items():
        raise Broken(
            f"{where}: row {row} is off by {gap:.3g} from every pass of the oracle, those with "
            "weights moved by their rounding among them",
            f"at most {limit[row]:.3g} from one of them, {JUMP:.0f} times the oracle's usual error "
            "of the rows around it in the same dtype",
        )
    try:
        want_near(got[steady], exact[steady], eager[steady], where)
    except Broken:
        if not strays:
            raise
        _want_near_before_choices(oracle, tokens, dtype, run, where)


def _want_near_before_choices(
    oracle: Oracle, tokens: Sequence[int], dtype: str, run: Run, where: str
) -> None:
    """The same of rows that attend to no row in which the oracle and we chose otherwise."""
    parts = []
    for turn in range(TURNS):
        start = turn * len(tokens) // TURNS
        text = [*tokens[start:], *tokens[:start]]
        exact, eager, got = oracle.exact(text, dtype), oracle.eager(text, dtype), run(text).cpu()
        theirs = _errors(eager, exact)
        most = torch.maximum(_errors(got, exact), theirs)
        chosen = (~(most <= JUMP * _usual(theirs))).nonzero()[:, 0].tolist()
        before = slice(0, min(chosen, default=len(text)))
        parts.append((got[before], exact[before], eager[before]))
    ours, wanted, rounded = (torch.cat(rows) for rows in zip(*parts, strict=True))
    if len(ours) < len(tokens):
        raise NotKnown(f"{where}: rounding chooses in too many rows, of {TURNS} texts too")
    want_near(ours, wanted, rounded, f"{where}, in rows that attend to no choice of rounding")


def _witnessed(
    passes: Iterator[torch.Tensor], got: torch.Tensor, rows: Sequence[int], limit: torch.Tensor
) -> dict[int, float]:
    """Those of some rows that lie near no pass of the oracle, and how far from all."""
    left = {row: float("inf") for row in rows}
    for nudged in islice(passes, NUDGES if rows else 0):
        gaps = _errors(got, nudged)
        left = {row: min(gap, float(gaps[row])) for row, gap in left.items()}
        left = {row: gap for row, gap in left.items() if not gap <= float(limit[row])}
        if not left:
            break
    return left


def _usual(errors: torch.Tensor) -> torch.Tensor:
    """[T], the median of the rows around each."""
    some = [errors[max(0, row - AROUND) : row + AROUND + 1] for row in range(len(errors))]
    return torch.stack([near.median() for near in some])


def _errors(rows: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """[T] float64, the root mean square of each row's difference."""
    return (rows.double() - exact).square().mean(1).sqrt()
