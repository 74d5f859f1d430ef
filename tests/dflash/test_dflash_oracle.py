"""Every format and option against the oracle: logits, tokens, and every row of the cache."""

from __future__ import annotations

import attrs
import pytest

from dflash.checkpoints import CASES, LAYERS
from dflash.conftest import Pair
from dflash.driver import Driver, load
from dflash.histories import Oracles, play
from dflash.oracle import facts_of
from pilotfish_dflash.oracle import read_facts


@pytest.mark.parametrize("case", CASES)
def test_logits_are_as_near_float64_as_eager_torch(pair: Pair, case: str) -> None:
    target, draft = pair(case)
    proposer, oracles = load(target, draft), Oracles(case, target)
    drivers: list[Driver] = []
    found = play(proposer, num_steps=8, after=drivers.append)
    assert sum(len(one.proposal.tokens) for one in found) > 12
    ours, eager, same = oracles.check(found)
    assert same
    assert ours <= 2 * eager
    ours, eager = oracles.check_rows(drivers[-1])
    assert ours <= 2 * eager


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_reads_a_config_as_it_must(pair: Pair, case: str) -> None:
    _, draft = pair(case)
    wanted, found = facts_of(CASES[case]), read_facts(draft, LAYERS)
    assert attrs.evolve(found, layer={}, embedding_factor=found.embedding_factor or 1.0) == (
        attrs.evolve(wanted, layer={})
    )
    ropes = [each.layer.get("rope_parameters") for each in (found, wanted)]
    assert ropes[0] == ropes[1]
