"""Every draft against the naive oracle: random histories, ragged batches, chunked prompts."""

from __future__ import annotations

import pytest

from eagle.checkpoints import CASES
from eagle.conftest import Pair
from eagle.driver import load
from eagle.histories import Oracles, play


@pytest.mark.parametrize("case", CASES)
def test_drafts_are_the_oracles(pair: Pair, case: str) -> None:
    target, draft = pair(case)
    eagle, oracles = load(target, draft), Oracles(case, target)
    for seed in range(2):
        found = play(eagle, seed)
        assert len(found) > 3
        ours, eager, same = oracles.check(found)
        assert same
        assert ours <= 2 * eager
