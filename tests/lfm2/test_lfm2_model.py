"""LFM2Model: strict loading, declared inputs, hidden states, and what the engine asks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfm2.checkpoints import prompt, reference
from lfm2.driver import Driver, load
from pilotfish.errors import WeightsError
from pilotfish.protocols import PipelineModel, ReturnHiddenStates, SpeculativeTarget
from pilotfish.state import KVCacheInputs
from pilotfish.state.manager import StateManager
from pilotfish_lfm2.config import LFM2Config
from pilotfish_lfm2.inputs import LFM2Inputs
from pilotfish_lfm2.model import LFM2Model

Checkpoint = Callable[[str], Path]


def changed(path: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((path / "config.json").read_text())
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.embedding_norm.weight",
        "model.layers.0.conv.conv.weight",
        "model.layers.0.conv.in_proj.weight",
        "model.layers.1.self_attn.q_layernorm.weight",
        "model.layers.2.feed_forward.w3.weight",
    ],
)
def test_a_missing_tensor_is_named(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    path = changed(checkpoint("plain"), tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(WeightsError, match=name.removeprefix("model.").split(".weight")[0]):
        load(path)


def test_extra_and_misshapen_tensors_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def biased(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.conv.conv.bias"] = torch.zeros(48)

    def wide(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.conv.conv.weight"] = torch.zeros(48, 1, 4)

    def crossed(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.conv.conv.weight"] = torch.zeros(48, 3, 1)

    for change, name in (
        (biased, "conv.conv.bias"),
        (wide, "conv.conv.weight"),
        (crossed, "conv.conv.weight"),
    ):
        with pytest.raises(WeightsError, match=name):
            load(changed(checkpoint("plain"), tmp_path, change))


def test_the_model_keeps_the_protocols(checkpoint: Checkpoint) -> None:
    model: PipelineModel = load(checkpoint("plain"))
    assert isinstance(model, SpeculativeTarget)
    assert model.config_class is LFM2Config
    assert [spec.name for spec in model.state] == ["kv", "conv"]
    model.release("nobody")
    shapes = model.parameter_shapes()
    assert shapes["layers.0.attention.weight"] == (48, 3)
    assert shapes["layers.0.attention.in_proj.weight"] == (144, 48)
    assert "lm_head.weight" not in shapes
    assert "lm_head.weight" in load(checkpoint("untied")).parameter_shapes()


def test_buffers_are_the_tensors_in_declared_order(checkpoint: Checkpoint) -> None:
    """The columns are among them: in place for a short request, in a run for a long one."""
    driver = Driver(load(checkpoint("plain")))
    for name, length in (("a", 2), ("b", 20)):
        driver.add(name, prompt(length))
        driver.contexts[name].num_scheduled = length
        driver.states.reserve(name, prompt(length))
    kv = driver.states.kv_inputs(["a", "b"], [2, 20])
    contexts = [driver.contexts[name] for name in ("a", "b")]
    inputs = driver.model.prepare_initial_token_inputs([contexts], kv, 1)
    assert isinstance(inputs, LFM2Inputs)
    assert inputs.request_ids == ("a", "b")
    columns = inputs.conv_states
    assert columns is kv.slots[0]
    assert columns.row_counts == (2, 20)
    (run,) = columns.runs
    wanted = [inputs.tokens, inputs.input_row_offsets, inputs.return_n_logits]
    wanted += [*kv.blocks, kv.lookup_table, kv.cache_lengths, kv.write_slots]
    wanted += [*columns.memory, columns.columns, columns.own, columns.rows, columns.places]
    wanted += run.memory
    assert len(inputs.buffers) == len(wanted)
    assert all(a is b for a, b in zip(inputs.buffers, wanted, strict=True))


def test_a_state_without_the_columns_is_refused(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("plain"))
    states = StateManager([model.config.kv_params.spec], num_pages=4, page_size_tokens=4)
    states.claim("a")
    states.reserve("a", [1])
    driver = Driver(model)
    driver.add("a", [1])
    driver.contexts["a"].num_scheduled = 1
    kv: KVCacheInputs = states.kv_inputs(["a"], [1])
    with pytest.raises(ValueError, match="no columns of the convolutions"):
        model.prepare_initial_token_inputs([[driver.contexts["a"]]], kv)


def test_hidden_states_at_every_boundary(checkpoint: Checkpoint) -> None:
    """Boundary i is the stream before block i, as transformers gives it."""
    path, tokens = checkpoint("plain"), prompt(9)
    with torch.no_grad():
        theirs = reference(path)(
            torch.tensor([tokens]), output_hidden_states=True, use_cache=False
        ).hidden_states
    model = load(
        path,
        return_hidden_states=ReturnHiddenStates.SELECTED,
        aux_hidden_state_layers=[3, 0, 1, 2, 0],
    )
    got = hidden(model, tokens)
    wanted = torch.cat([theirs[i][0] for i in (3, 0, 1, 2, 0)], dim=1)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
    last = hidden(load(path, return_hidden_states=ReturnHiddenStates.ALL_NORMALIZED), tokens)
    assert torch.allclose(last, theirs[4][0], rtol=1e-4, atol=1e-5)


def hidden(model: LFM2Model, tokens: list[int]) -> torch.Tensor:
    """The hidden states of one request's one pass."""
    driver = Driver(model)
    driver.add("a", tokens)
    driver.contexts["a"].num_scheduled = len(tokens)
    driver.states.reserve("a", tokens)
    kv = driver.states.kv_inputs(["a"], [len(tokens)])
    inputs = model.prepare_initial_token_inputs([[driver.contexts["a"]]], kv)
    found = model.execute(inputs).hidden_states
    assert found is not None
    return found
