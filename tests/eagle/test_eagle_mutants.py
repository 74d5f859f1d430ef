"""Bugs planted on purpose: each must push the drafts away from the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from eagle.checkpoints import VOCAB
from eagle.conftest import Pair
from eagle.driver import load
from eagle.histories import Oracles, play
from pilotfish.errors import PilotfishError
from pilotfish.layers.attention import Attention
from pilotfish.layers.linear import Linear
from pilotfish.layers.rope import Rotary
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.speculation import DraftRows, SequentialProposer
from pilotfish.speculation.draft_vocabulary import DraftVocabulary
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.formats import EagleFormat
from pilotfish_eagle.model import EagleModel
from pilotfish_eagle.network import EagleNetwork, JoiningBlock

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def moved_layers(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Plant:
    """Other boundaries than the format means."""

    def plant(patch: Patch) -> None:
        read = EagleFormat.aux_hidden_state_layers

        def wrong(self: EagleFormat, num_target_layers: int) -> Any:
            found, source = read(self, num_target_layers)
            return change(found), source

        patch.setattr(EagleFormat, "aux_hidden_state_layers", wrong)

    return plant


def config_with(**fields: Any) -> Plant:
    """A config that says something else than the draft's files do."""

    def plant(patch: Patch) -> None:
        finalize = EagleConfig.finalize

        def wrong(self: EagleConfig, *args: Any) -> EagleConfig:
            return attrs.evolve(finalize(self, *args), **fields)

        patch.setattr(EagleConfig, "finalize", wrong)

    return plant


def rope_with(**fields: Any) -> Plant:
    """Rotary positions of the draft that say something else than its files do."""

    def plant(patch: Patch) -> None:
        start = EagleNetwork.__init__

        def wrong(self: EagleNetwork, config: EagleConfig, *options: Any) -> None:
            start(self, attrs.evolve(config, rope=attrs.evolve(config.rope, **fields)), *options)

        patch.setattr(EagleNetwork, "__init__", wrong)

    return plant


def loaded(change: Callable[[EagleModel], None]) -> Plant:
    """A draft that lost something after it was loaded."""

    def plant(patch: Patch) -> None:
        load_model = EagleModel.load_model

        def wrong(self: EagleModel, *args: Any) -> None:
            load_model(self, *args)
            change(self)

        patch.setattr(EagleModel, "load_model", wrong)

    return plant


def no_bias(layer: Linear) -> None:
    layer.packed = attrs.evolve(layer.packed, bias=None)


def lose_fc_bias(model: EagleModel) -> None:
    no_bias(model.network.fc)


def lose_qkv_bias(model: EagleModel) -> None:
    assert model.network.first is not None
    no_bias(model.network.first.attention.qkv)


def lose_own_embedding(model: EagleModel) -> None:
    model.network.embed_tokens = None


def lose_input_norm(model: EagleModel) -> None:
    model.network.input_norm = None


def lose_tap_norms(model: EagleModel) -> None:
    model.network.fc_norm = []


def absolute_ids(patch: Patch) -> None:
    def wrong(self: DraftVocabulary, tensors: dict[str, torch.Tensor], backend: object) -> None:
        self.ids = tensors["offsets"] % VOCAB

    patch.setattr(DraftVocabulary, "complete", wrong)


def rows_with(change: Callable[[DraftRows], DraftRows]) -> Plant:
    """Rows that read something else than they should."""

    def plant(patch: Patch) -> None:
        forward = EagleModel.forward

        def wrong(self: EagleModel, rows: DraftRows) -> Any:
            return forward(self, change(rows))

        patch.setattr(EagleModel, "forward", wrong)

    return plant


def first_request_for_all(rows: DraftRows) -> DraftRows:
    """The features of the batch's first rows, whoever the rows belong to."""
    if rows.features is None:
        return rows
    starts, counts = rows.input_row_offsets[:-1], rows.input_row_offsets.diff()
    within = torch.arange(len(rows.tokens)) - starts.repeat_interleave(counts)
    return attrs.evolve(rows, features=rows.features[within])


def recycled_of_the_neighbour(rows: DraftRows) -> DraftRows:
    if rows.prev_hidden_states is None:
        return rows
    return attrs.evolve(rows, prev_hidden_states=rows.prev_hidden_states.roll(1, 0))


def shifted_tokens(patch: Patch) -> None:
    """Row i reads token i instead of token i+1."""
    patch.setattr(EagleModel, "shift", 0)


def scratch_overwritten(patch: Patch) -> None:
    """Later passes begin at the committed length again."""
    rows = SequentialProposer._rows

    def wrong(self: Any, *args: Any, skip: Any, **options: Any) -> Any:
        return rows(self, *args, skip=None, **options)

    patch.setattr(SequentialProposer, "_rows", wrong)


def features_before_the_norm(patch: Patch) -> None:
    """EAGLE-1 gets the stream instead of the normed output."""
    hidden_states = DecoderModel._hidden_states

    def wrong(self: DecoderModel, state: Any, kept: Any, counts: Any) -> Any:
        hidden_states(self, state, kept, counts)
        return state.sum(self.backend)[: sum(counts)]

    patch.setattr(DecoderModel, "_hidden_states", wrong)


def hidden_first_in_fc(patch: Patch) -> None:
    run = EagleNetwork.run
    patch.setattr(
        EagleNetwork, "run", lambda self, embedded, hidden, p: run(self, hidden, embedded, p)
    )


def hidden_first_in_attention(patch: Patch) -> None:
    real = torch.cat

    def call(self: JoiningBlock, embedded: Any, hidden: Any, run: Any) -> Any:
        normed = self.hidden_norm(hidden, run.backend)
        joined = real((normed, self.input_norm(embedded, run.backend)), dim=-1)
        rows, residual = self.mlp_norm.add(self.attention(joined, run), hidden, run.backend)
        return self.mlp(rows, run), residual

    patch.setattr(JoiningBlock, "__call__", call)


def fc_on_every_row(patch: Patch) -> None:
    """What the pass before returned goes through fc again."""
    beside = EagleModel._beside

    def wrong(self: EagleModel, rows: DraftRows) -> torch.Tensor:
        hidden = beside(self, rows)
        if rows.prev_hidden_states is None:
            return hidden
        return self.network.combine(hidden.repeat(1, len(self.config.aux_hidden_state_layers)))

    patch.setattr(EagleModel, "_beside", wrong)


def interleaved_rope(patch: Patch) -> None:
    call = Attention.__call__

    def wrong(self: Attention, x: torch.Tensor, run: Any) -> torch.Tensor:
        self.interleaved = type(self) is not Attention
        return call(self, x, run)

    patch.setattr(Attention, "__call__", wrong)


def positions_stop(patch: Patch) -> None:
    """Rows of later passes stay at the position of the first."""
    turn = Rotary.__call__

    def wrong(self: Rotary, positions: torch.Tensor, *options: Any) -> Any:
        return turn(self, positions - (positions > 6).long(), *options)

    patch.setattr(Rotary, "__call__", wrong)


def norm_at_the_head_of_the_first(patch: Patch) -> None:
    """EAGLE-1's output goes through the target's final norm before the head."""
    head = DecoderModel.lm_head

    def wrong(self: DecoderModel, hidden: torch.Tensor) -> torch.Tensor:
        return head(self, self.network.norm(hidden, self.backend))

    patch.setattr(DecoderModel, "lm_head", wrong)


MUTANTS: dict[str, tuple[str, Plant]] = {
    "29 boundaries taken for blocks": (
        "speculators",
        moved_layers(lambda t: tuple(i + 1 for i in t)),
    ),
    "29 blocks taken for boundaries": (
        "eagle3-blocks",
        moved_layers(lambda t: tuple(i - 1 for i in t)),
    ),
    "29 default taps one too far": (
        "eagle3",
        moved_layers(lambda t: tuple(i + 1 for i in t)),
    ),
    "30 fc bias lost": ("eagle1", loaded(lose_fc_bias)),
    "30 fc bias of a third draft lost": ("eagle3-biases", loaded(lose_fc_bias)),
    "30 qkv bias lost": ("eagle1-qkv-bias", loaded(lose_qkv_bias)),
    "30 norm before residual lost": ("eagle3-residual", config_with(norm_before_residual=False)),
    "30 norm before residual invented": ("eagle3", config_with(norm_before_residual=True)),
    "30 norm before fc lost": ("eagle3-norm-before-fc", loaded(lose_input_norm)),
    "30 norms of the taps lost": ("eagle3-fc-norm", loaded(lose_tap_norms)),
    "31 d2t taken for ids": ("eagle3", absolute_ids),
    "32 the target's embedding instead of its own": ("eagle3-permuted", loaded(lose_own_embedding)),
    "33 theta lost": ("eagle3-theta", rope_with(theta=10000.0)),
    "33 theta inside the rope options lost": ("eagle1-rope", rope_with(theta=10000.0)),
    "33 scaling lost": ("eagle3-rope", rope_with(factor=1.0)),
    "33 whole heads turned": ("eagle3-theta", rope_with(rotary_dim=12)),
    "33 neighbouring pairs turned": ("eagle3", interleaved_rope),
    "34 handed on after the norm": ("eagle3", config_with(feeds_normed_states=True)),
    "34 handed on before the norm": (
        "speculators-new",
        config_with(feeds_normed_states=False),
    ),
    "a head without its norm": ("eagle3-norm-output", config_with(norms_head=False)),
    "a window that is not there": ("eagle3-leftover-window", config_with(windows=(2,))),
    "no window": ("speculators-sliding", config_with(windows=(None,))),
    "a window of one key less": ("speculators-sliding", config_with(windows=(3,))),
    "the windows of other layers": ("eagle3-sliding", config_with(windows=(None, 3, 3))),
    "34 features before the norm": ("eagle1", features_before_the_norm),
    "34 a norm before the target's head": ("eagle1", norm_at_the_head_of_the_first),
    "34 fc on handed-on rows": ("eagle3", fc_on_every_row),
    "35 features of the first request": ("eagle3", rows_with(first_request_for_all)),
    "35 handed-on rows of the neighbour": ("eagle1", rows_with(recycled_of_the_neighbour)),
    "36 taps sorted": ("eagle3-blocks", config_with(aux_hidden_state_layers=(2, 2, 6))),
    "36 taps deduplicated": ("eagle3-blocks", config_with(aux_hidden_state_layers=(6, 2))),
    "tokens not shifted": ("eagle1", shifted_tokens),
    "scratch rows overwritten": ("eagle3", scratch_overwritten),
    "feature before embedding in fc": ("eagle1", hidden_first_in_fc),
    "feature before embedding in attention": ("eagle3", hidden_first_in_attention),
    "positions stand still": ("eagle3", positions_stop),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_seen(pair: Pair, monkeypatch: Patch, name: str) -> None:
    case, plant = MUTANTS[name]
    target, draft = pair(case)
    oracles = Oracles(case, target)
    plant(monkeypatch)
    try:
        found = play(load(target, draft))
    except PilotfishError:
        return  # refused at load: seen
    ours, eager, same = oracles.check(found)
    assert not same or ours > 2 * eager
