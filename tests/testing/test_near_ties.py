"""Rows in which rounding chooses between two experts may fall either way; all others may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from pilotfish.testing import Broken, NotKnown, Oracle
from pilotfish.testing.near_ties import want_like_oracle

ROWS, WIDTH = 20, 8
BFLOAT16 = "bfloat16"


class TwoExperts(Oracle):
    """Each token takes one of two experts; a few lie on the border of both."""

    def __init__(self, *, near: Sequence[int], is_nudged: bool = True) -> None:
        self.near, self.is_nudged = set(near), is_nudged

    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        return self.answer(tokens, noise=0.0, seed=0)

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        return self.answer(tokens, noise=4e-3, seed=1).float()

    def nudged(self, tokens: Sequence[int], dtype: str) -> Iterator[torch.Tensor]:
        seed = 1
        while self.is_nudged:
            yield self.answer(tokens, noise=8e-3, seed=(seed := seed + 1))

    def answer(self, tokens: Sequence[int], *, noise: float, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for token in tokens:
            drawn = torch.randn(WIDTH + 1, generator=generator, dtype=torch.float64)
            score = (1e-4 if token in self.near else 1.0) + noise * float(drawn[0])
            base = torch.sin(torch.arange(WIDTH, dtype=torch.float64) + token)
            rows.append((base if score > 0 else -base) * (1 + noise * drawn[1:]))
        return torch.stack(rows)


def judge(oracle: TwoExperts, change: Callable[[torch.Tensor], object], seed: int = 50) -> None:
    def ours(tokens: Sequence[int]) -> torch.Tensor:
        found = oracle.answer(tokens, noise=4e-3, seed=seed)
        change(found)
        return found.float()

    want_like_oracle(oracle, range(ROWS), BFLOAT16, ours, "here")


@pytest.mark.parametrize("seed", range(50, 58))
def test_a_row_between_two_experts_may_fall_either_way(seed: int) -> None:
    judge(TwoExperts(near=[7, 12]), lambda rows: None, seed)
    judge(TwoExperts(near=[7, 12]), lambda rows: rows[7].neg_(), seed)


@pytest.mark.parametrize("row", [5, 7])
@pytest.mark.parametrize("near", [(), (7, 12)])
def test_another_row_may_not(row: int, near: Sequence[int]) -> None:
    """Nor may such a row be anything else than one of both."""
    with pytest.raises(Broken, match=f"row {row} is off by .* from every pass of the oracle"):
        judge(TwoExperts(near=near), lambda rows: rows[row].mul_(3))
    if not near:
        with pytest.raises(Broken, match=f"row {row} is off"):
            judge(TwoExperts(near=near), lambda rows: rows[row].neg_())
    with pytest.raises(Broken, match="row 7 is off by inf"):
        judge(TwoExperts(near=[7], is_nudged=False), lambda rows: rows[7].copy_(-rows[7].abs() - 9))


@pytest.mark.parametrize("scale", [1.02, 1.5])
@pytest.mark.parametrize("seed", range(50, 54))
def test_a_large_error_of_the_oracles_in_such_a_row_is_no_leave(scale: float, seed: int) -> None:
    with pytest.raises(Broken, match="root mean square"):
        judge(TwoExperts(near=[7, 12]), lambda rows: rows.mul_(scale), seed)


class Attending(TwoExperts):
    """Each row has a little of all rows before it; `eager` falls as `exact` does, ours not."""

    flipped: Sequence[int] = ()

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        return Attending(near=[]).answer(tokens, noise=4e-3, seed=1).float()

    def answer(self, tokens: Sequence[int], *, noise: float, seed: int) -> torch.Tensor:
        is_ours = seed >= 50
        near = () if is_ours else self.near
        rows = TwoExperts(near=near).answer(tokens, noise=noise, seed=seed)
        if is_ours:
            rows[[token in self.flipped for token in tokens]] *= -1
        before = rows.cumsum(0) - rows
        return rows + 0.01 * before


@pytest.mark.parametrize("seed", range(50, 58))
def test_rows_that_attend_to_such_a_row_are_no_measure(seed: int) -> None:
    oracle = Attending(near=[3])
    oracle.flipped = [3]
    judge(oracle, lambda rows: None, seed)
    with pytest.raises(Broken, match=r"here, in rows that .*: the root mean square error"):
        judge(oracle, lambda rows: rows.mul_(1.02), seed)


def test_where_rounding_chooses_everywhere_nothing_is_known() -> None:
    oracle = Attending(near=range(0, ROWS, 3))
    oracle.flipped = range(0, ROWS, 3)
    with pytest.raises(NotKnown, match="rounding chooses in too many rows"):
        judge(oracle, lambda rows: None)


@pytest.mark.parametrize(("times", "is_broken"), [(2, False), (30, True)])
def test_rows_are_judged_by_the_rows_around_them(times: float, is_broken: bool) -> None:
    """Rounding makes larger errors in later rows, as of angles that are far round."""

    class Growing(TwoExperts):
        def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
            return self.answer(tokens, noise=0.0, seed=0) + off(tokens)

        def nudged(self, tokens: Sequence[int], dtype: str) -> Iterator[torch.Tensor]:
            yield self.exact(tokens, dtype)

    def off(tokens: Sequence[int]) -> torch.Tensor:
        return 1e-6 * torch.tensor(tokens, dtype=torch.float64)[:, None] ** 2

    oracle, tokens = Growing(near=[]), range(200)

    def ours(tokens: Sequence[int]) -> torch.Tensor:
        found = oracle.answer(tokens, noise=0.0, seed=0) - off(tokens)
        found[50] -= (times - 1) * off(tokens)[50]
        return found

    if is_broken:
        with pytest.raises(Broken, match="row 50 is off by"):
            want_like_oracle(oracle, tokens, BFLOAT16, ours, "here")
    else:
        want_like_oracle(oracle, tokens, BFLOAT16, ours, "here")


def test_rows_that_are_not_finite_are_broken() -> None:
    with pytest.raises(Broken, match="row 3 is off"):
        judge(TwoExperts(near=[]), lambda rows: rows[3].fill_(torch.nan))


def test_an_oracle_that_contradicts_itself_is_no_measure() -> None:
    class Wrong(TwoExperts):
        def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
            found = super().eager(tokens, dtype)
            found[:5] *= -1
            return found

    oracle = Wrong(near=range(10, 16))
    others = -oracle.exact(range(10, 16), BFLOAT16)
    with pytest.raises(NotKnown, match="`eager` is not its `exact` in most rows"):
        judge(oracle, lambda rows: rows[10:16].copy_(others))
