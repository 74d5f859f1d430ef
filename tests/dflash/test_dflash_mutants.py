"""Bugs planted on purpose: each must push the drafts away from the oracle, or the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from dflash.checkpoints import CASES, VOCAB
from dflash.conftest import Pair
from dflash.driver import Driver, load
from dflash.histories import Oracles, play
from pilotfish.errors import PilotfishError
from pilotfish.kernels.context_kv_write import eager as kernel
from pilotfish.layers.linear import Linear
from pilotfish.speculation import BlockProposer, BlockRows, ContextRows
from pilotfish.state import KVCacheInputs
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.formats import DFlashFormat, LayerMaskSpec
from pilotfish_dflash.model import DFlashProposer
from pilotfish_dflash.network import ContextKV, DFlashLlama3

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def moved_layers(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Plant:
    """Other boundaries than the format means."""

    def plant(patch: Patch) -> None:
        read = DFlashFormat.aux_hidden_state_layers

        def wrong(self: DFlashFormat, num_target_layers: int) -> Any:
            found, source = read(self, num_target_layers)
            return change(found), source

        patch.setattr(DFlashFormat, "aux_hidden_state_layers", wrong)

    return plant


def config_with(**fields: Any) -> Plant:
    """A config that says something else than the draft's files do."""

    def plant(patch: Patch) -> None:
        finalize = DFlashConfig.finalize

        def wrong(self: DFlashConfig, *args: Any) -> DFlashConfig:
            return attrs.evolve(finalize(self, *args), **fields)

        patch.setattr(DFlashConfig, "finalize", wrong)

    return plant


def rope_with(**fields: Any) -> Plant:
    """Rotary positions that say something else than the draft's files do."""

    def plant(patch: Patch) -> None:
        start = DFlashLlama3.__init__

        def wrong(self: DFlashLlama3, config: DFlashConfig, **options: Any) -> None:
            changed = attrs.evolve(config, rope=attrs.evolve(config.rope, **fields))
            start(self, changed, **options)

        patch.setattr(DFlashLlama3, "__init__", wrong)

    return plant


def loaded(change: Callable[[DFlashProposer], None]) -> Plant:
    """A draft that lost something after it was loaded."""

    def plant(patch: Patch) -> None:
        load_model = DFlashProposer.load_model

        def wrong(self: DFlashProposer, *args: Any) -> None:
            load_model(self, *args)
            change(self)

        patch.setattr(DFlashProposer, "load_model", wrong)

    return plant


def no_bias(layer: Linear) -> None:
    layer.packed = attrs.evolve(layer.packed, bias=None)


def lose_context_bias(model: DFlashProposer) -> None:
    no_bias(model.network.context.kv)


def lose_query_bias(model: DFlashProposer) -> None:
    no_bias(model.network.layers[1].attention.qkv)  # type: ignore[attr-defined]


def lose_hidden_norm(model: DFlashProposer) -> None:
    model.network.hidden_norm.weight = torch.ones_like(model.network.hidden_norm.weight)


def share_a_key_norm(model: DFlashProposer) -> None:
    context = model.network.context
    context.k_norm = context.k_norm[:1].expand_as(context.k_norm).contiguous()


def lose_own_head(model: DFlashProposer) -> None:
    model.network.lm_head = None


def lose_own_embedding(model: DFlashProposer) -> None:
    model.network.embed_tokens = None


def absolute_ids(model: DFlashProposer) -> None:
    vocabulary = model.network.vocabulary
    assert vocabulary is not None
    vocabulary.ids = (vocabulary.ids - torch.arange(len(vocabulary.ids))) % VOCAB


def values_before_keys(patch: Patch) -> None:
    write = ContextKV.write

    def wrong(self: ContextKV, rows: Any, angles: Any, kv: Any, backend: Any) -> None:
        shape = self.shape
        real = self.kv
        self.kv = lambda x, b: real(x, b).view(shape).flip(2).flatten(1)  # type: ignore[assignment]
        try:
            write(self, rows, angles, kv, backend)
        finally:
            self.kv = real

    patch.setattr(ContextKV, "write", wrong)


def context_with(change: Callable[[ContextRows], ContextRows]) -> Plant:
    """Rows of the context that are not what they should be."""

    def plant(patch: Patch) -> None:
        take_in = DFlashProposer.take_in

        def wrong(self: DFlashProposer, rows: ContextRows) -> None:
            take_in(self, change(rows))

        patch.setattr(DFlashProposer, "take_in", wrong)

    return plant


def block_with(change: Callable[[BlockRows], BlockRows]) -> Plant:
    """Rows of the block that are not what they should be."""

    def plant(patch: Patch) -> None:
        forward = DFlashProposer.forward

        def wrong(self: DFlashProposer, rows: BlockRows) -> torch.Tensor:
            return forward(self, change(rows))

        patch.setattr(DFlashProposer, "forward", wrong)

    return plant


def first_request_for_all(rows: ContextRows) -> ContextRows:
    count = rows.kv.row_counts[0]
    some = torch.arange(rows.features.shape[0]) % max(1, count)
    return attrs.evolve(rows, features=rows.features[some])


def features_shifted(rows: ContextRows) -> ContextRows:
    return attrs.evolve(rows, features=rows.features.roll(1, 0))


def from_the_beginning(kv: KVCacheInputs) -> KVCacheInputs:
    return attrs.evolve(kv, cache_lengths=torch.zeros_like(kv.cache_lengths))


def anchor_is_a_mask(rows: BlockRows) -> BlockRows:
    return attrs.evolve(rows, tokens=torch.full_like(rows.tokens, 90))


def mask_is_another_token(rows: BlockRows) -> BlockRows:
    return attrs.evolve(rows, tokens=rows.tokens.where(rows.tokens != 90, 89))


def rows_one_early(rows: BlockRows) -> BlockRows:
    """Slots 0 to K-2 of the head instead of 1 to K-1."""
    return attrs.evolve(rows, wanted_rows=tuple(row - 1 for row in rows.wanted_rows))


def verify_metadata(patch: Patch) -> None:
    """The block is put where the verify pass's rows were: before the rows that were taken in."""
    block_rows = BlockProposer._block_rows

    def wrong(self: BlockProposer, batch: Any, live: Any) -> BlockRows:
        real = batch.kv_inputs
        without = attrs.evolve(
            batch,
            kv_inputs=lambda ids, counts, cache_name, skip: real(
                ids, counts, cache_name, [0] * len(ids)
            ),
        )
        return block_rows(self, without, live)

    patch.setattr(BlockProposer, "_block_rows", wrong)


def only_last_chunk(patch: Patch) -> None:
    """Rows of a step that drafts nothing are not taken in."""
    real = BlockProposer._num_context_rows
    patch.setattr(
        BlockProposer,
        "_num_context_rows",
        lambda self, request: real(self, request) if request.num_draft_tokens else 0,
    )


def rows_left_out(patch: Patch) -> None:
    """Accepted rows keep what the block wrote there; only the first row is taken in."""
    real = BlockProposer._num_context_rows
    patch.setattr(
        BlockProposer,
        "_num_context_rows",
        lambda self, request: (
            min(1, real(self, request)) if request.num_before else real(self, request)
        ),
    )


def no_key_norm(patch: Patch) -> None:
    patch.setattr(kernel, "rms_norm", lambda x, weight, eps, cast: x.clone())


def no_turn(patch: Patch) -> None:
    patch.setattr(kernel, "apply_rope", lambda x, cos, sin, interleaved: x)


def norm_of_a_layer_before(patch: Patch) -> None:
    """The context goes through a layer's input norm, as rows of the block do."""
    project = DFlashLlama3.project_target_hidden

    def wrong(self: DFlashLlama3, features: torch.Tensor) -> torch.Tensor:
        rows = project(self, features)
        return self.layers[0].attention_norm(rows, self.backend)

    patch.setattr(DFlashLlama3, "project_target_hidden", wrong)


def mask_specs(window: int | None, *causal: bool) -> Plant:
    return config_with(
        mask_specs=tuple(LayerMaskSpec(window=window, is_causal=one) for one in causal)
    )


MUTANTS: dict[str, tuple[str, Plant]] = {
    "13 chunks that are not the last are left out": ("plain", only_last_chunk),
    "5 accepted rows keep what the block wrote": ("plain", rows_left_out),
    "29 blocks taken for boundaries": (
        "plain",
        moved_layers(lambda t: tuple(i - 1 for i in t)),
    ),
    "29 boundaries taken for blocks": (
        "speculators-default",
        moved_layers(lambda t: tuple(i + 1 for i in t)),
    ),
    "29 default taps one too far": (
        "default-ids",
        moved_layers(lambda t: tuple(i + 1 for i in t)),
    ),
    "30 biases of the context lost": ("biases", loaded(lose_context_bias)),
    "30 biases of the block lost": ("biases", loaded(lose_query_bias)),
    "30 norm of the context lost": ("plain", loaded(lose_hidden_norm)),
    "30 one key norm for all layers": ("plain", loaded(share_a_key_norm)),
    "30 keys of the context not normed": ("plain", no_key_norm),
    "30 context through a layer's input norm": ("plain", norm_of_a_layer_before),
    "30 embedding scale lost": ("factors", config_with(embedding_factor=1.0)),
    "30 output multiplier lost": ("factors", config_with(logit_factor=1.0)),
    "30 softcap lost": ("factors", config_with(logit_softcap=None)),
    "31 d2t taken for ids": ("speculators-small", loaded(absolute_ids)),
    "32 the target's head instead of its own": ("speculators-own", loaded(lose_own_head)),
    "32 the target's embedding instead of its own": (
        "speculators-own",
        loaded(lose_own_embedding),
    ),
    "33 theta lost": ("theta", rope_with(theta=10000.0)),
    "33 scaling lost": ("linear", rope_with(factor=1.0)),
    "33 long factors lost": ("longrope", rope_with(original_max_positions=1 << 20)),
    "33 keys of the context not turned": ("plain", no_turn),
    "35 features of the first request": ("plain", context_with(first_request_for_all)),
    "35 features of the row before": ("plain", context_with(features_shifted)),
    "36 taps sorted": ("unsorted", config_with(aux_hidden_state_layers=(0, 1, 6, 6, 7))),
    "36 taps deduplicated": ("unsorted", config_with(aux_hidden_state_layers=(6, 1, 0, 7))),
    "37 the block stands where the verify pass's rows were": ("plain", verify_metadata),
    "37 the context's positions begin at zero": (
        "plain",
        context_with(lambda rows: attrs.evolve(rows, kv=from_the_beginning(rows.kv))),
    ),
    "the block is causal": ("plain", mask_specs(None, True, True, True)),
    "a sliding layer sees the whole block": ("sliding", mask_specs(5, False, False, False)),
    "a causal draft sees the whole block": ("all-causal", mask_specs(None, False, False, False)),
    "windows lost": ("not-causal", mask_specs(None, False, False, False)),
    "window one too wide": ("sliding", mask_specs(6, True, True, True)),
    "values before keys": ("plain", values_before_keys),
    "the anchor is a mask": ("plain", block_with(anchor_is_a_mask)),
    "another token for the mask": ("plain", block_with(mask_is_another_token)),
    "the head reads the slots before": ("plain", block_with(rows_one_early)),
    "the anchor proposes nothing": ("speculators-anchor", config_with(samples_anchor=False)),
}


def run(pair: Pair, case: str) -> tuple[bool, bool]:
    """(whether logits and tokens are the oracle's, whether the rows are)."""
    target, draft = pair(case)
    oracles, drivers = Oracles(case, target), list[Driver]()
    found = play(load(target, draft), num_steps=7, after=drivers.append)
    ours, eager, same = oracles.check(found)
    rows, eager_rows = oracles.check_rows(drivers[-1])
    return same and ours <= 2 * eager, rows <= 2 * eager_rows


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_seen(pair: Pair, monkeypatch: Patch, name: str) -> None:
    case, plant = MUTANTS[name]
    target, draft = pair(case)
    oracles = Oracles(case, target)
    plant(monkeypatch)
    try:
        found = play(load(target, draft), num_steps=7)
    except (PilotfishError, AssertionError):
        return  # refused at load, or nothing could be drafted: seen
    ours, eager, same = oracles.check(found)
    assert not same or ours > 2 * eager


def test_without_a_bug_nothing_is_seen(pair: Pair) -> None:
    """The same histories, so that a mutant is seen for what it does."""
    for case in {case for case, _ in MUTANTS.values()}:
        assert run(pair, case) == (True, True)
    assert {case for case, _ in MUTANTS.values()} <= set(CASES)
