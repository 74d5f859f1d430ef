"""Drafts with one thing wrong: refused by the name of the option or tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dflash.checkpoints import CASES, VOCAB, draft_config, draft_tensors, write_draft
from dflash.conftest import Pair
from dflash.driver import pipeline as on_disk
from dflash.test_dflash_config import read
from dflash.test_dflash_weights import changed, load_draft
from pilotfish.errors import ConfigError, WeightsError
from pilotfish.weights import open_checkpoint
from pilotfish_dflash.config import NEEDED, DFlashConfig

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a text for heads": ({"num_attention_heads": "x"}, "num_attention_heads = 'x'; wanted a whole"),
    "no heads": ({"num_attention_heads": 0}, "draft's config has num_attention_heads = 0; wanted"),
    "half a token": ({"draft_vocab_size": 1.5}, "draft_vocab_size = 1.5; wanted a whole number"),
    "a true token": ({"draft_vocab_size": True}, "draft_vocab_size = True; wanted a whole number"),
    "a head width": ({"head_dim": "x"}, "head_dim = 'x'; wanted a whole number"),
    "theta": ({"rope_theta": "x"}, "draft's config has rope_theta = 'x'; wanted a number > 1"),
    "a dtype": ({"torch_dtype": "int3"}, "torch_dtype = 'int3', which is not served; wanted"),
    "a text for the target's layers": (
        {"num_target_layers": "7"},
        "num_target_layers = '7'; wanted a whole number",
    ),
    "no window": (
        {"dflash_config": {"mask_token_id": 1, "use_swa": True}},
        "sliding layers .* no window; wanted sliding_window in its config.json, or swa",
    ),
    "a window of none": (
        {
            "dflash_config": {"mask_token_id": 1, "use_swa": True, "swa_window_size": 0},
            "use_sliding_window": True,
            "sliding_window": 5,
        },
        "swa_window_size = 0; wanted a whole number >= 1",
    ),
    "no boundaries": ({"hidden_state_boundaries": []}, r"hidden_state_boundaries is \[\]; wanted"),
    "no ids": (
        {"dflash_config": {"target_layer_ids": [], "mask_token_id": 1}},
        r"target_layer_ids is \[\]; wanted a list of whole numbers, one at least",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_the_wrong_kind_is_refused_by_name_and_value(name: str) -> None:
    options, said = OPTIONS[name]
    with pytest.raises(ConfigError, match=said):
        read({**draft_config(CASES["plain"]), **options}, dtype="float32")


UNREAD: dict[str, object] = {
    "attention_sinks": True,
    "use_attention_sink": True,
    "mask_embedding": True,
    "qk_norm": False,
    "norm_type": "layer_norm",
    "use_final_norm": False,
    "rotary_dim": 10,
}


@pytest.mark.parametrize("place", ["beside", "transformer_layer_config"])
@pytest.mark.parametrize("name", UNREAD)
def test_an_option_of_the_maths_that_is_not_read_is_named(name: str, place: str) -> None:
    config = draft_config(CASES["plain" if place == "beside" else "speculators"])
    at = config if place == "beside" else config["transformer_layer_config"]
    at[name] = UNREAD[name]
    with pytest.raises(ConfigError, match=f"{name} = {UNREAD[name]!r}, which is not served"):
        read(config, dtype="float32")


@pytest.mark.parametrize("name", NEEDED)
def test_a_field_that_the_file_leaves_out_is_missed_there(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    config = draft_config(CASES["plain"])
    config.pop(name)
    write_draft(tmp_path / "draft", config, draft_tensors(CASES["plain"]))
    draft = open_checkpoint(str(tmp_path / "draft")).model_config()
    with pytest.raises(ConfigError, match=rf"draft's config has no {name}; the config is incomp"):
        DFlashConfig.initialize(on_disk(*pair("plain")), draft)


def test_a_window_by_default_is_that_of_another_model(pair: Pair, tmp_path: Path) -> None:
    layers = {"layer_types": ["sliding_attention"] * 3}
    for options, said in (
        ({"use_sliding_window": True}, r"in its config\.json, or swa_window_size"),
        ({"sliding_window": 4}, r"in its config\.json, with use_sliding_window true, or"),
    ):
        config = {**draft_config(CASES["plain"]), **layers, **options}
        folder = tmp_path / said[-2:]
        write_draft(folder, config, draft_tensors(CASES["plain"]))
        draft = open_checkpoint(str(folder)).model_config()
        with pytest.raises(ConfigError, match=f"and no window; wanted sliding_window {said}"):
            DFlashConfig.initialize(on_disk(*pair("plain")), draft)


def test_a_model_type_beside_the_layers_adds_no_option_that_nobody_wrote(
    pair: Pair, tmp_path: Path
) -> None:
    config = {**draft_config(CASES["speculators"]), "model_type": "qwen3"}
    write_draft(tmp_path / "draft", config, draft_tensors(CASES["speculators"]))
    draft = open_checkpoint(str(tmp_path / "draft")).model_config()
    assert DFlashConfig.initialize(on_disk(*pair("plain")), draft).aux_hidden_state_layers == (
        6,
        2,
        2,
    )
    config["new_maths"] = True
    write_draft(tmp_path / "other", config, draft_tensors(CASES["speculators"]))
    other = open_checkpoint(str(tmp_path / "other")).model_config()
    with pytest.raises(ConfigError, match=r"draft's config has new_maths = True, which is not"):
        DFlashConfig.initialize(on_disk(*pair("plain")), other)


TENSORS: dict[str, tuple[Any, str]] = {
    "d2t of floats": (lambda t: t.update(d2t=t["d2t"].float()), "d2t holds float32; wanted offset"),
    "t2d of nothing": (
        lambda t: t.update(t2d=torch.zeros(VOCAB, dtype=torch.bool)),
        "t2d contradicts its d2t",
    ),
    "fc of whole numbers": (
        lambda t: t.update({"fc.weight": t["fc.weight"].int()}),
        r"in whole numbers: 1 tensors such as fc\.weight int32",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_the_wrong_kind_is_refused_by_name(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    change, said = TENSORS[name]
    with pytest.raises(WeightsError, match=said):
        load_draft(*changed(pair, tmp_path / "draft", "speculators-small", change))
