"""Drafts with one thing wrong: refused by the name of the option or tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle.checkpoints import CASES, LAYER, draft_config, draft_tensors, write_draft
from eagle.conftest import Pair
from eagle.driver import pipeline
from eagle.test_eagle_config import IDS, NESTED, first, read, third
from eagle.test_eagle_weights import load_draft, with_tensors
from pilotfish.cli import main
from pilotfish.config import ModelConfig
from pilotfish.errors import CheckpointError, ConfigError, WeightsError
from pilotfish.weights import open_checkpoint
from pilotfish_eagle.config import EagleConfig

CASE = "eagle3"

NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{name} {value!r}": (
            {name: value},
            rf"draft's config has {name} = {value!r}; wanted a whole number >= 1",
        )
        for name in ("draft_vocab_size", "num_attention_heads", "head_dim", "target_hidden_size")
        for value in ("x", 1.5, True)
    },
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads = 0; wanted a whole number"),
    "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads = 0; wanted a whole number"),
    "half a layer": ({"num_hidden_layers": 1.0}, "num_hidden_layers = 1.0; wanted a whole number"),
    "a text for theta": ({"rope_theta": "x"}, "draft's config has rope_theta = 'x'; wanted a num"),
    "true for theta": ({"rope_theta": True}, "rope_theta = True; wanted a number > 1"),
    "no theta": ({"rope_theta": 0}, "rope_theta = 0; wanted a number > 1"),
    "a share": ({"partial_rotary_factor": "half"}, "partial_rotary_factor = 'half'; wanted a num"),
    "positions": ({"max_position_embeddings": 12.5}, "max_position_embeddings = 12.5; wanted a w"),
    "a factor": (
        {"rope_parameters": {"rope_type": "linear", "factor": "x"}},
        "factor = 'x'; wanted a number",
    ),
    "a spiral": ({"rope_parameters": {"rope_type": "foo"}}, "draft's rope_type is 'foo'"),
    "a dtype": ({"torch_dtype": "int3"}, "torch_dtype = 'int3', which is not served; wanted"),
    "a text for ids": ({IDS: "2"}, rf"{IDS} is '2'; wanted a list of whole numbers, one at least"),
    "a nested text": ({NESTED: {IDS: "2"}}, rf"{IDS} is '2'; wanted a list"),
    "no boundaries": ({"hidden_state_boundaries": []}, r"hidden_state_boundaries is \[\]; wanted"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_an_option_of_the_wrong_kind_is_refused_by_name_and_value(name: str) -> None:
    options, said = NUMBERS[name]
    with pytest.raises(ConfigError, match=said):
        read(third(**options), dtype="float32")


def draft_on_disk(path: Path, drop: tuple[str, ...] = (), **options: Any) -> ModelConfig:
    config = {**draft_config(CASES[CASE]), **options}
    write_draft(
        path,
        {k: v for k, v in config.items() if k not in drop},
        draft_tensors(CASES[CASE]),
        CASES[CASE],
    )
    return open_checkpoint(str(path)).model_config()


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_a_field_that_the_file_leaves_out_is_missed_there(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    """transformers fills a default in; it is not the draft's, and not blamed on the target."""
    options = pipeline(*pair(CASE))
    draft = draft_on_disk(tmp_path / "draft", drop=(name,))
    assert getattr(draft.huggingface_config, name) is not None
    with pytest.raises(ConfigError, match=rf"draft's config has no {name}; the config is incomp"):
        EagleConfig.initialize(options, draft)


def test_heads_that_transformers_divides_by_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_attention_heads is 0; wanted a whole number"):
        draft_on_disk(tmp_path / "draft", num_attention_heads=0)


def test_an_unknown_rope_type_is_one_line(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target, _ = pair(CASE)
    draft_on_disk(tmp_path / "draft", rope_parameters={"rope_type": "foo"})
    capfd.readouterr()
    flags = ["--speculative", "eagle", "--draft", str(tmp_path / "draft")]
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        assert main(["generate", str(target), "--prompt", "x", *flags]) == 2
    finally:
        logging.set_verbosity(level)
    [line] = capfd.readouterr().err.strip().splitlines()
    assert "the draft's rope_type is 'foo'; wanted one of default" in line


def test_an_ordinary_model_is_called_no_draft_first(pair: Pair, tmp_path: Path) -> None:
    """Its architecture is also EAGLE-1's; its width is beside the point."""
    target, _ = pair(CASE)
    path = tmp_path / "small"
    path.mkdir()
    config = json.loads((target / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 16, "head_dim": 4}))
    (path / "model.safetensors").symlink_to(target / "model.safetensors")
    small = open_checkpoint(str(path)).model_config()
    with pytest.raises(ConfigError, match=r"no fc\.weight, so it is no EAGLE draft"):
        EagleConfig.initialize(pipeline(target, target), small)
    with pytest.raises(ConfigError, match="hidden_size 64"):  # not on disk: only the config tells
        read(first(hidden_size=64))


TENSORS: dict[str, tuple[Any, str]] = {
    "d2t of floats": (lambda t: t.update(d2t=t["d2t"].float()), "d2t holds float32; wanted offset"),
    "d2t of bools": (lambda t: t.update(d2t=t["d2t"] > 9), "d2t holds bool; wanted offsets"),
    "t2d of nothing": (
        lambda t: t.update(t2d=torch.zeros(LAYER["vocab_size"], dtype=torch.bool)),
        r"t2d contradicts its d2t: token \d+ is in d2t and not in t2d, and so are 39 more",
    ),
    "t2d of everything": (
        lambda t: t.update(t2d=torch.ones(LAYER["vocab_size"], dtype=torch.bool)),
        "is in t2d and not in d2t",
    ),
    "fc of whole numbers": (
        lambda t: t.update({"fc.weight": t["fc.weight"].int()}),
        r"in whole numbers: 1 tensors such as fc\.weight int32 \[48, 144\]\), which is not served",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_the_wrong_kind_is_refused_by_name(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    change, said = TENSORS[name]
    with pytest.raises(WeightsError, match=said):
        load_draft(*with_tensors(pair, tmp_path, CASE, change))


def test_a_t2d_that_agrees_is_taken(pair: Pair, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        known = torch.zeros(LAYER["vocab_size"], dtype=torch.bool)
        known[torch.arange(tensors["d2t"].shape[0]) + tensors["d2t"]] = True
        tensors["t2d"] = known

    load_draft(*with_tensors(pair, tmp_path, CASE, add))
