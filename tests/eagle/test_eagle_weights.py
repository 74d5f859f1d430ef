"""Loading drafts: strict in every format, and what is borrowed of the target."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagle.checkpoints import CASES, VOCAB, draft_config, draft_tensors, write_draft
from eagle.conftest import Pair
from eagle.driver import BACKEND, load, options_of
from eagle.driver import draft_config as finalized
from pilotfish.errors import CheckpointError, PilotfishError, WeightsError
from pilotfish.weights import open_checkpoint
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.model import EagleModel
from pilotfish_eagle.network import EagleNetwork


def with_tensors(
    pair: Pair, tmp_path: Path, case: str, change: Any, **options: Any
) -> tuple[Path, Path]:
    """The case's pair, the draft's tensors and options changed."""
    target, _ = pair(case)
    tensors = draft_tensors(CASES[case])
    change(tensors)
    path = tmp_path / "draft"
    write_draft(path, {**draft_config(CASES[case]), **options}, tensors, CASES[case])
    return target, path


opened = cache(lambda target: open_checkpoint(str(target)))


def load_draft(target: Path, draft: Path) -> None:
    """Only the draft: what is wrong with it is said before a target is asked anything."""
    found = open_checkpoint(str(draft))
    options = options_of(opened(target), found)
    weights = found.weights()
    config = EagleConfig.initialize(options).finalize(found.huggingface_config, weights.infos)
    setup: Any = SimpleNamespace(
        pipeline_config=options, config=config, backend=BACKEND, device="cpu", target=None
    )
    EagleModel(setup).load_model(weights)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_needed(pair: Pair, tmp_path: Path, case: str) -> None:
    """Each one left out is missed by name, unless the target lends it or a rule says why not."""
    target, _ = pair(case)
    config = finalized(*pair(case))
    lent = {"t2d", "embed_tokens.weight", "lm_head.weight"}
    if config.draft_vocab_size == VOCAB:
        lent |= {"d2t"}
    if config.version == 3:
        lent |= {"fc.bias"}  # no option says whether there is one
    if not config.norms_head:
        lent |= {"norm.weight"}
    for number, name in enumerate(draft_tensors(CASES[case])):
        if name in lent:
            continue
        tensors = draft_tensors(CASES[case])
        del tensors[name]
        path = tmp_path / str(number)
        write_draft(path, draft_config(CASES[case]), tensors, CASES[case])
        with pytest.raises(PilotfishError) as caught:
            load_draft(target, path)
        assert name.rpartition(".")[0] in str(caught.value).replace("midlayer.", "layers.0.")


@pytest.mark.parametrize(
    "extra",
    [
        "layers.0.self_attn.q_norm.weight",
        "layers.1.mlp.up_proj.weight",
        "fc.scales",
        "fc_norm.0.weight",
    ],
)
@pytest.mark.parametrize("case", ["eagle1", "eagle3"])
def test_extra_tensors_are_named(pair: Pair, tmp_path: Path, case: str, extra: str) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[extra] = torch.zeros(48)

    with pytest.raises(WeightsError, match=extra.rpartition(".")[0].removeprefix("layers.0.")):
        load(*with_tensors(pair, tmp_path, case, add))


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("eagle1", "layers.0.input_layernorm.weight"),
        ("eagle1", "norm.weight"),
        ("eagle1", "lm_head.weight"),
        ("eagle1-bin", "fc.bias"),
        ("eagle3", "layers.0.self_attn.q_proj.bias"),
        ("eagle3", "input_norm.weight"),
    ],
)
def test_tensors_that_the_config_denies_are_refused(
    pair: Pair, tmp_path: Path, case: str, extra: str
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[extra] = torch.ones(48)

    with pytest.raises(WeightsError, match=extra.removeprefix("layers.0.")):
        load(*with_tensors(pair, tmp_path, case, add))


def test_misshapen_tensors_are_named(pair: Pair, tmp_path: Path) -> None:
    """fc for three taps in a draft whose config names two."""
    with pytest.raises(WeightsError, match=r"fc\.weight"):
        load(
            *with_tensors(
                pair, tmp_path, "eagle3", lambda _: None, eagle_aux_hidden_state_layer_ids=[1, 2]
            )
        )


@pytest.mark.parametrize("shift", [1, -VOCAB])
def test_a_d2t_that_leads_outside_is_refused(pair: Pair, tmp_path: Path, shift: int) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        ids = tensors["d2t"] + torch.arange(40)
        tensors["d2t"] = tensors["d2t"] + shift * (VOCAB - int(ids.max()) if shift > 0 else 1)

    with pytest.raises(WeightsError, match="d2t"):
        load(*with_tensors(pair, tmp_path, "eagle3", change))


def test_a_d2t_with_ids_instead_of_offsets_is_refused(pair: Pair, tmp_path: Path) -> None:
    """Twice the same id, or one outside: a table of ids is hardly ever a table of offsets."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["d2t"] = tensors["d2t"] + torch.arange(40)

    with pytest.raises(WeightsError, match=r"id = i \+ d2t\[i\]"):
        load(*with_tensors(pair, tmp_path, "eagle3", change))


def test_what_is_borrowed_has_no_memory_of_its_own(pair: Pair) -> None:
    shapes = {case: EagleNetwork(finalized(*pair(case))).parameter_shapes() for case in CASES}
    assert "embed_tokens.weight" not in shapes["eagle1"]
    assert shapes["eagle1-bin"]["embed_tokens.weight"] == (VOCAB, 48)
    assert not any(name.startswith("lm_head") for name in shapes["eagle1-bin"])
    assert shapes["eagle3"]["lm_head.weight"] == (40, 48)
    assert shapes["eagle3-narrow"]["embed_tokens.weight"] == (VOCAB, 32)
    assert shapes["eagle3-narrow"]["fc.weight"] == (32, 3 * 48)
    assert shapes["eagle3"]["joining.attention.qkv.weight"] == ((4 + 2 * 2) * 12, 2 * 48)
    assert "lm_head.weight" not in shapes["eagle3-target-head"]
    tied = load(*pair("eagle3-tied"))
    assert "lm_head.weight" not in tied.parameter_shapes()
    head, embedding = tied.network.lm_head, tied.network.embed_tokens
    assert head is not None
    assert embedding is not None
    assert head.packed.weight.data_ptr() == embedding.weight.data_ptr()


def test_pickled_code_is_never_run(pair: Pair, tmp_path: Path) -> None:
    target, path = with_tensors(pair, tmp_path, "eagle1-bin", lambda _: None)
    torch.save({"fc.weight": Path("anything")}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled code is never run"):
        load(target, path)
