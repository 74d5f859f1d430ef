"""The promise that drafts are their oracle's: what a drafter does otherwise is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch

from dflash.test_dflash_mutants import context_with
from eagle.test_eagle_mutants import features_before_the_norm, loaded, rows_with
from pilotfish import SpeculativeConfig, load_registry
from pilotfish.registry import Plugin, Registry, SpeculatorSpec
from pilotfish.speculation import DraftRows
from pilotfish.testing import DraftOracle, Result, Subject, check, promise_named
from pilotfish.testing.draft_oracle import DefinedOracle, Turn
from pilotfish.testing.outcome import NotKnown
from pilotfish.testing.promises import draft_parity
from pilotfish_eagle.model import EagleModel
from speculation.pairs import METHODS, Shelf, registry
from speculation.test_promises_of_drafts import with_drafter

Plant = Callable[[pytest.MonkeyPatch], None]
PROMISE = promise_named("drafts are the oracle's")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("promised"), registry())


def result(shelf: Shelf, drafter: str, served: Registry | None = None) -> Result:
    draft = shelf.draft(drafter)
    with Subject(
        name=drafter,
        model=str(shelf.target("LlamaForCausalLM", "plain")),
        registry=served or shelf.registry,
        dtypes=("bfloat16",),  # the promise is one of float32 all the same
        num_threads=1,
        draft=None if draft is None else str(draft),
        speculative=SpeculativeConfig(method=METHODS.get(drafter, drafter)),
    ) as subject:
        return check(PROMISE, subject)


class Still:
    """Rotary positions that are all the first."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __call__(self, positions: torch.Tensor, *options: Any) -> Any:
        return self.real(torch.zeros_like(positions), *options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def positions_zero(model: EagleModel) -> None:
    network: Any = model.network
    network.rotary = Still(network.rotary)


def recycled_zeros(rows: DraftRows) -> DraftRows:
    if rows.prev_hidden_states is None:
        return rows
    return attrs.evolve(rows, prev_hidden_states=torch.zeros_like(rows.prev_hidden_states))


def tokens_shifted(rows: DraftRows) -> DraftRows:
    return attrs.evolve(rows, tokens=rows.tokens.roll(1))


def next_place(patch: pytest.MonkeyPatch) -> None:
    import pilotfish_ngram.proposer as module

    real = module._follow
    patch.setattr(module, "_follow", lambda t, place, width: real(t, place, width + 1)[1:])


def shifted_ids(patch: pytest.MonkeyPatch) -> None:
    import pilotfish_small_model.proposer as module

    real = module.fitted
    patch.setattr(module, "fitted", lambda logits, size: real(logits, size).roll(1, -1))


def features_shifted(rows: Any) -> Any:
    return attrs.evolve(rows, features=rows.features.roll(1, 0))


MUTANTS: dict[str, tuple[str, Plant]] = {
    "positions are zero": ("eagle-3", loaded(positions_zero)),
    "rows that the pass before returned are zero": ("eagle-3", rows_with(recycled_zeros)),
    "features before the norm": ("eagle-1", features_before_the_norm),
    "tokens of the row before": ("eagle-1", rows_with(tokens_shifted)),
    "features of the row before": ("dflash", context_with(features_shifted)),
    "what follows is read one place on": ("ngram", next_place),
    "ids are shifted by one": ("small model", shifted_ids),
}


@pytest.mark.parametrize("drafter", METHODS)
def test_the_built_in_drafters_draft_as_their_oracles(shelf: Shelf, drafter: str) -> None:
    found = result(shelf, drafter)
    assert found.status == "ok", found.said


@pytest.mark.parametrize("name", MUTANTS)
def test_a_drafter_that_drafts_something_else_is_noticed(
    shelf: Shelf, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, plant = MUTANTS[name]
    plant(monkeypatch)
    found = result(shelf, drafter)
    assert found.status == "FAILED"
    assert "drafted; wanted" in found.said
    assert found.said.endswith("as its oracle")


def test_without_an_oracle_it_is_not_known(shelf: Shelf) -> None:
    from speculation.test_promises_of_drafts import Bigrams

    found = result(shelf, "own", with_drafter(Bigrams))
    assert found.status == "not known"
    assert found.said == (
        "nothing says what 'own' should draft: name a `draft_oracle` in its SpeculatorSpec, "
        "(target's folder, draft's folder) -> pilotfish.testing.DraftOracle"
    )


class Silent(DraftOracle):
    """Says that nothing is drafted."""

    def __init__(self, target: Any, draft: Any) -> None:
        del target, draft

    def drafts(self, tokens: Sequence[int], width: int) -> Sequence[int]:
        return ()


def test_an_authors_oracle_is_asked(shelf: Shelf) -> None:
    spec = SpeculatorSpec(
        method="own",
        config="pilotfish_ngram.config:NgramConfig",
        model="pilotfish_ngram.proposer:NgramProposer",
        draft_oracle=f"{__name__}:Silent",
    )
    own = Plugin(name="own", speculators=(spec,))
    found = result(shelf, "own", Registry(plugins=(*load_registry().plugins, own)))
    assert found.status == "FAILED"
    assert "drafted; wanted [], as its oracle" in found.said


def test_rotary_positions_that_transformers_does_not_have_are_not_known() -> None:
    layer = {"rope_parameters": {"rope_type": "of one's own", "rope_theta": 1e4}}
    with pytest.raises(NotKnown, match="transformers has no rotary positions of type"):
        Turn(layer, head_dim=16)


def test_what_neither_drafts_nor_scores_says_so() -> None:
    with pytest.raises(NotImplementedError, match="DraftOracle has no `drafts` and no `scores`"):
        DraftOracle().drafts([1], 1)


@attrs.frozen
class Scored:
    """Token 3 leads token 5 by a gap, and float32 is off by `noise`."""

    gap: float
    noise: float

    def scores(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        row = torch.full((len(drafted), 8), self.noise, dtype=torch.float64)
        row[:, 3] += 1 + self.gap
        row[:, 5] += 1
        row[:, 7] = -torch.inf
        return row


@pytest.mark.parametrize(
    ("gap", "drafted", "is_tie"),
    [(1e-6, (3, 5), True), (1e-3, (3, 5), False), (0.0, (7, 3), False), (1e-6, (3,), False)],
)
def test_near_ties_may_fall_either_way(gap: float, drafted: tuple[int, ...], is_tie: bool) -> None:
    oracle = DefinedOracle(lambda dtype: Scored(gap, 1e-6 * (dtype == torch.float32)))
    assert list(oracle.drafts([1, 2], 2)) == [3, 3]
    assert draft_parity._tie(oracle, [1, 2], drafted, [3, 3]) == is_tie
