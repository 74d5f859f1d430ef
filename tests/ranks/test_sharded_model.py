"""ShardedModel: a model over two processes gives the logits of one device, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pilotfish.config import CacheConfig, ParallelConfig
from pilotfish.errors import RankError
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.ranks.driver import load_on_ranks
from pilotfish.ranks.sharded_model import ShardedModel
from pilotfish.testing.session import Session
from ranks.left import are_gone

TWO = ParallelConfig(tensor_parallel=2, rank_timeout=30)
ONE = ParallelConfig(reduction_slices=2)
TEXTS = {name: [(7 * i + seed) % 60 + 2 for i in range(30)] for seed, name in enumerate("abc")}


def options_of(model: Path) -> dict[str, Any]:
    cache = CacheConfig(page_size_tokens=4, num_pages=48)
    return {"model": str(model), "device": "cpu", "dtype": "float32", "cache": cache}


def played(model: Any, state: Any) -> Mapping[str, torch.Tensor]:
    """Logits of passes over a random few; some requests go and come back with a prefix hit."""
    session = Session(model, state)
    session.add_all(TEXTS)
    first = session.finish_mixed(random.Random(0))
    for name in TEXTS:
        session.drop(name)
    session.add("again", TEXTS["a"], warm=True)
    return {**first, **session.finish_mixed(random.Random(1))}


@pytest.fixture(scope="module")
def tiny_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    )
    directory = tmp_path_factory.mktemp("tiny-lfm2")
    Lfm2ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tiny_lfm2"])
def test_logits_are_those_of_one_device(checkpoint: str, request: pytest.FixtureRequest) -> None:
    options = options_of(request.getfixturevalue(checkpoint))
    prepared = prepare_from_options(**options, parallel=ONE)
    wanted = played(prepared.model, prepared.load())
    mine = prepare_from_options(**options, parallel=TWO)
    whole, state, ranks, _ = load_on_ranks(mine, options)
    with ranks:
        found = played(whole.model, state)
        assert found.keys() == wanted.keys()
        for name, logits in wanted.items():
            assert torch.equal(found[name], logits), name
        with pytest.raises(ValueError, match="wanted those of the state that was attached"):
            played(whole.model, prepared.allocate())
        target: Any = whole.model
        tokens = torch.tensor([3, 1])
        rows = target.embed(tokens)
        assert torch.equal(rows, prepared.model.embed(tokens))  # type: ignore[attr-defined]
        assert torch.equal(target.lm_head(rows), prepared.model.lm_head(rows))  # type: ignore[attr-defined]
    assert are_gone(ranks.pids, 0)


def test_a_load_that_fails_here_leaves_nobody(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Prepared, counted: Any) -> Any:
        raise ZeroDivisionError

    pids: list[int] = []
    init = ShardedModel.__init__

    def noted(self: ShardedModel, model: Any, ranks: Any) -> None:
        pids.extend(ranks.pids)
        init(self, model, ranks)

    monkeypatch.setattr(Prepared, "load", fails)
    monkeypatch.setattr(ShardedModel, "__init__", noted)
    options = options_of(tiny_checkpoint)
    with pytest.raises(ZeroDivisionError):
        load_on_ranks(prepare_from_options(**options, parallel=TWO), options)
    assert pids
    assert are_gone(pids, 0)


def test_a_load_that_fails_there_says_what_was_raised(tiny_checkpoint: Path) -> None:
    options = options_of(tiny_checkpoint)
    prepared = prepare_from_options(**options, parallel=TWO)
    with pytest.raises(RankError, match="rank 1 of 2 raised CheckpointError in loading"):
        load_on_ranks(prepared, {**options, "model": str(tiny_checkpoint / "no such")})


def test_the_rest_is_the_models_own(tiny_checkpoint: Path) -> None:
    model: Any = prepare_from_options(**options_of(tiny_checkpoint)).model
    sharded: Any = ShardedModel(model, None)  # type: ignore[arg-type]
    assert sharded.config is model.config
    assert sharded.parameter_shapes() == model.parameter_shapes()
    assert not hasattr(sharded, "no_such_thing")
