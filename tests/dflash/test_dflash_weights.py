"""Loading drafts: strict in every format, K and V for the context in one weight."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dflash.checkpoints import CASES, draft_config, draft_tensors, write_draft
from dflash.conftest import Pair
from dflash.driver import BACKEND, load, options_of
from pilotfish.errors import ConfigError, PilotfishError, WeightsError
from pilotfish.weights import open_checkpoint
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.model import DFlashProposer
from pilotfish_dflash.network import DFlashLlama3

KINDS = ("plain", "one-layer", "biases", "speculators-small", "speculators-own")


opened = cache(lambda target: open_checkpoint(str(target)))


def load_draft(target: Path, draft: Path) -> DFlashProposer:
    """Only the draft: what is wrong with it is said before a target is asked anything."""
    found = open_checkpoint(str(draft))
    options = options_of(opened(target), found)
    weights = found.weights()
    config = DFlashConfig.initialize(options).finalize(found.huggingface_config, weights.infos)
    setup: Any = SimpleNamespace(
        pipeline_config=options, config=config, backend=BACKEND, device="cpu", target=None
    )
    proposer = DFlashProposer(setup)
    proposer.load_model(weights)
    return proposer


def changed(pair: Pair, path: Path, case: str, change: Any) -> tuple[Path, Path]:
    target, _ = pair(case)
    tensors = draft_tensors(CASES[case])
    change(tensors)
    write_draft(path, draft_config(CASES[case]), tensors, CASES[case].prefix)
    return target, path


@pytest.mark.parametrize("case", KINDS)
def test_every_tensor_is_needed(pair: Pair, tmp_path: Path, case: str) -> None:
    """Each one left out is missed by name, unless the target lends it."""
    lent = {"t2d"} if case == "speculators-small" else {"embed_tokens.weight", "lm_head.weight"}
    for number, name in enumerate(draft_tensors(CASES[case])):
        if name in lent:
            continue
        pair_of = changed(pair, tmp_path / str(number), case, lambda t, name=name: t.pop(name))
        with pytest.raises(PilotfishError) as caught:
            load_draft(*pair_of)
        assert re.search(rf"(?<![\w.])(model\.)?{re.escape(name)}(?!\.?\w)", str(caught.value))


@pytest.mark.parametrize(
    "extra",
    [
        *("layers.0.self_attn.q_proj.bias", "layers.0.self_attn.k_proj.bias", "fc.bias"),
        *("layers.3.mlp.up_proj.weight", "mask_embedding", "layers.0.attention_sink_bias"),
        *("input_norm.weight", "layers.0.mlp.gate_proj.bias"),
    ],
)
def test_extra_tensors_are_named(pair: Pair, tmp_path: Path, extra: str) -> None:
    with pytest.raises(WeightsError, match=extra.replace(".", r"\.")):
        load_draft(
            *changed(pair, tmp_path / "a", "plain", lambda t: t.update({extra: torch.zeros(48)}))
        )


def test_misshapen_tensors_are_named(pair: Pair, tmp_path: Path) -> None:
    """fc for two taps in a draft whose config names three; heads of another width."""
    for name, shape in (("fc.weight", (48, 96)), ("layers.1.self_attn.k_norm.weight", (16,))):
        path = tmp_path / name
        pair_of = changed(
            pair,
            path,
            "plain",
            lambda t, name=name, shape=shape: t.update({name: torch.zeros(shape)}),
        )
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            load_draft(*pair_of)


def test_copies_of_the_verifier_are_let_lie(pair: Pair, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["verifier_norm.weight"] = torch.ones(48)
        tensors["verifier_lm_head.weight"] = torch.ones(96, 48)

    load_draft(*changed(pair, tmp_path / "a", "speculators", add))


def test_offsets_that_are_no_tokens_are_refused(pair: Pair, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["d2t"] = tensors["d2t"] + 96

    with pytest.raises(WeightsError, match="d2t maps"):
        load_draft(*changed(pair, tmp_path / "a", "speculators-small", change))


def test_offsets_without_a_head_of_their_own_are_refused(pair: Pair, tmp_path: Path) -> None:
    """Also where they name every token: the target's logits would be shuffled."""
    ids = torch.arange(96).flip(0) - torch.arange(96)
    with pytest.raises(ConfigError, match=r"has d2t and no lm_head\.weight"):
        load_draft(*changed(pair, tmp_path / "a", "plain", lambda t: t.update(d2t=ids)))


@pytest.mark.parametrize("case", [*KINDS, "wide-heads"])
def test_the_memory_plan_knows_what_is_held_twice(pair: Pair, case: str) -> None:
    target, draft = pair(case)
    proposer = load_draft(target, draft)
    held = sum(math.prod(shape) for shape in proposer.parameter_shapes().values())
    infos = open_checkpoint(str(draft)).weights().infos
    in_file = sum(math.prod(info.shape) for name, info in infos.items() if name != "t2d")
    assert proposer.config.num_repeated_weights == held - in_file


def test_the_context_has_one_projection_and_no_queries(pair: Pair) -> None:
    """Keys and values of all layers are rows of one weight, layer by layer."""
    network = load(*pair("plain")).network
    rows = 3 * 2 * 2 * 20
    assert network.context.kv.packed.out_features == rows
    tensors = draft_tensors(CASES["plain"])
    x = torch.randn(4, 48)
    wanted = torch.cat(
        [
            x @ tensors[f"layers.{layer}.self_attn.{part}_proj.weight"].T
            for layer in range(3)
            for part in "kv"
        ],
        dim=1,
    )
    torch.testing.assert_close(network.context.kv(x, BACKEND), wanted)


def test_the_number_of_features_is_not_that_of_the_layers(pair: Pair) -> None:
    target, draft = pair("override")
    proposer = load(target, draft)
    assert proposer.network.num_context_features == 2
    assert proposer.config.num_hidden_layers == 3
    wider = DFlashLlama3(proposer.config, num_context_features=5)
    assert wider.parameter_shapes()["fc.weight"] == (48, 5 * 48)


def test_embedding_and_head_are_the_targets_unless_the_file_has_them(pair: Pair) -> None:
    lent, own = load(*pair("plain")), load(*pair("speculators-own"))
    assert lent.network.embed_tokens is None
    assert lent.network.lm_head is None
    assert not any("lm_head" in name or "embed" in name for name in lent.parameter_shapes())
    tokens = torch.tensor([3, 90])
    assert torch.equal(lent.embed(tokens), lent.target.embed(tokens))
    tensors = draft_tensors(CASES["speculators-own"])
    assert torch.equal(own.embed(tokens), tensors["embed_tokens.weight"][tokens])
    hidden = torch.randn(2, 48)
    torch.testing.assert_close(own.logits(hidden), hidden @ tensors["lm_head.weight"].T)
