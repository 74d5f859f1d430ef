"""Tensors that do not fit, and what they are a sign of: quantizers, pointers, other parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pilotfish import load_registry
from pilotfish.cli import main
from pilotfish.errors import CheckpointError, RouteError, WeightsError
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.testing import save_tiny
from pilotfish.weights import GGUFFile, open_checkpoint
from pilotfish.weights.hf_config import read_config
from support.gguf_files import write_gguf

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
PROJECTION = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return save_tiny("LlamaForCausalLM", "plain", folder, load_registry())


def changed(tiny: Path, path: Path, change: Callable[[Tensors], object], **config: Any) -> Path:
    """A copy with other tensors, and other words in its config."""
    path.mkdir(exist_ok=True)
    tensors = load_file(tiny / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)
    written = json.loads((tiny / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**written, **config}))
    return path


def renamed(*endings: str) -> Callable[[Tensors], object]:
    """The weight of every projection replaced by other tensors, as quantizers do."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            plain = tensors.pop(name)
            for ending in endings:
                tensors[name.removesuffix("weight") + ending] = plain.to(torch.int32).clone()

    return change


def scaled(*endings: str) -> Callable[[Tensors], object]:
    """Tensors beside the weight of every projection."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            for ending in endings:
                tensors[name.removesuffix("weight") + ending] = torch.ones(2)

    return change


def in_bytes(tensors: Tensors) -> None:
    tensors[f"{PROJECTION}.weight"] = tensors[f"{PROJECTION}.weight"].to(torch.int8)


MADE_BY: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "gptq": (renamed("qweight", "qzeros", "scales", "g_idx"), "GPTQ or AWQ: "),
    "blocks of float8": (scaled("weight_scale_inv"), "8-bit floats in blocks: "),
    "modelopt": (scaled("weight_scale", "input_scale"), "ModelOpt or compressed-tensors: "),
    "bitsandbytes": (scaled("weight.absmax", "weight.quant_map"), "bitsandbytes: "),
    "mlx": (scaled("scales", "biases"), "MLX: "),
    "bytes": (
        in_bytes,
        rf"in whole numbers: 1 tensors such as {PROJECTION}.weight int8 \[\d+, \d+\]",
    ),
}


@pytest.mark.parametrize("name", MADE_BY)
def test_tensors_of_quantized_weights_are_called_so(tiny: Path, tmp_path: Path, name: str) -> None:
    change, said = MADE_BY[name]
    model = changed(tiny, tmp_path / "m", change)
    with pytest.raises(WeightsError, match=rf"weights are quantized \(.*{said}") as caught:
        prepare_from_options(str(model))
    text = str(caught.value)
    assert ("MLX" in text) == (name == "mlx")
    assert "take the checkpoint that it was made of, or a GGUF file" in text
    assert len(text) < 600, "kinds and counts, not every name"


BESIDE: dict[str, dict[str, Any]] = {
    "hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm"]}},
    "quantization": {"group_size": 64, "bits": 4},
    "compression_config": {"quant_method": "sparseml", "format": "int-quantized"},
}


@pytest.mark.parametrize("place", BESIDE)
def test_what_other_places_say_of_quantization_is_refused_as_the_configs_own_word(
    tiny: Path, tmp_path: Path, place: str
) -> None:
    inside = {} if place.endswith(".json") else {place: BESIDE[place]}
    model = changed(tiny, tmp_path / "m", dict, **inside)
    if place.endswith(".json"):
        (model / place).write_text(json.dumps(BESIDE[place]))
    said = {
        "hf_quant_config.json": "modelopt, quant_algo 'NVFP4'",
        "quantization": "MLX, bits 4",
        "compression_config": "sparseml, format 'int-quantized'",
    }[place]
    with pytest.raises(ValueError, match=rf"quantized \(quantization_config: {said}\)"):
        prepare_from_options(str(model))


def test_a_quantized_cache_alone_is_no_quantized_checkpoint(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path / "m", dict)
    said = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (model / "hf_quant_config.json").write_text(json.dumps(said))
    prepare_from_options(str(model))


OTHERS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "mtp": (
        lambda t: t.update({"mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}),
        r"1 extra: mtp.layers.0.mlp.up_proj.weight \[2, 2\]. 1 tensors are of multi-token pred",
    ),
    "adapter": (
        lambda t: t.update({f"{PROJECTION}.lora_A.weight": torch.ones(2, 2)}),
        "1 tensors are of an adapter: merge it into its model",
    ),
    "images": (
        lambda t: t.update({"visual.blocks.0.weight": torch.ones(2, 2)}),
        "1 tensors are of images, which this architecture does not read",
    ),
    "score": (
        lambda t: t.update({"score.weight": torch.ones(2, 48)}),
        "1 tensors are of a head that is no language model's",
    ),
    "draft": (
        lambda t: t.update({"fc.weight": torch.ones(2, 2)}),
        "1 tensors are of a draft, which cannot run alone: give its target as the model",
    ),
    "left out": (
        lambda t: t.pop(f"{PROJECTION}.weight"),
        "1 missing: .*q_proj.weight .*Check that no file is left out: get the whole checkpoint",
    ),
    "no head": (
        lambda t: t.pop("lm_head.weight"),
        r"1 missing: lm_head.weight\. Its config does not tie the head to the embedding",
    ),
    "another width": (
        lambda t: t.update({f"{PROJECTION}.weight": torch.ones(3, 3)}),
        "1 misshapen: .*Check that the config belongs to these weights",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_inspect_names_what_does_not_fit_and_what_it_is(
    tiny: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = OTHERS[name]
    model = changed(tiny, tmp_path / "m", change)
    with pytest.raises(WeightsError, match=said):
        prepare_from_options(str(model))
    capsys.readouterr()
    assert main(["inspect", str(model)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pilotfish: error: the checkpoint does not fit the archi")


def test_inspect_plans_the_load_of_a_draft_too(tiny: Path, tmp_path: Path) -> None:
    model = changed(tiny, tmp_path / "m", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(WeightsError, match="1 missing"):
        prepare_from_options(str(tiny), draft=str(model), speculative="small_model")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 4976\n"


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors"],
        ["pytorch_model.bin"],
        ["tokenizer.json"],
        ["config.json"],
        ["model-1.safetensors", "model-2.safetensors", "tokenizer.json", "vocab.json"],
    ],
)
def test_pointers_of_git_lfs_are_called_so(tiny: Path, tmp_path: Path, names: list[str]) -> None:
    model = changed(tiny, tmp_path / "m", dict)
    for name in names:
        (model / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"Git LFS pointers, .* run `git lfs install`") as e:
        open_checkpoint(str(model))
    assert f"{4976 * len(names)} bytes" in str(e.value)
    assert ", ".join(names[:3]) in str(e.value)
    assert ("and 1 more" in str(e.value)) == (len(names) > 3)


def test_a_gguf_file_that_is_a_pointer_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"m\.gguf: Git LFS pointers"):
        open_checkpoint(str(tmp_path / "m.gguf"))


def test_gguf_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """The second tensor's place is written over that of the first."""
    tensors = {name: (np.zeros((4, 32), dtype=np.float32), None) for name in ("first", "second")}
    path = write_gguf(tmp_path / "m.gguf", tensors)
    assert set(GGUFFile(path)) == {"first", "second"}
    data = path.read_bytes()
    at = data.rindex((4 * 32 * 4).to_bytes(8, "little"))  # where the second begins
    for wrong in (0, 32):
        path.write_bytes(data[:at] + wrong.to_bytes(8, "little") + data[at + 8 :])
        with pytest.raises(CheckpointError, match="begins within"):
            GGUFFile(path)


def test_a_gguf_files_architecture_is_refused_before_its_types(tmp_path: Path) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType.IQ4_NL
    num_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    tensors = {"t": (np.zeros((1, num_bytes), dtype=np.uint8), kind)}
    path = write_gguf(tmp_path / "m.gguf", tensors, architecture="gemma3")
    with pytest.raises(RouteError, match="no plugin reads a GGUF file of architecture 'gemma3'; "):
        open_checkpoint(str(path), load_registry())
    with pytest.raises(CheckpointError, match="tensor types that are not read: 1 of IQ4_NL"):
        open_checkpoint(str(path)).weights()


def test_numbers_that_json_does_not_have_are_read(tmp_path: Path) -> None:
    """As transformers writes them."""
    written = {
        "model_type": "of-nobody",
        "limit": {"__float__": "Infinity"},
        "least": {"__float__": "-Infinity"},
        "list": [{"__float__": "Infinity"}, {"__float__": "x"}, {"__float__": 1, "more": 2}],
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = read_config(tmp_path)
    assert (config.limit, config.least) == (float("inf"), float("-inf"))
    assert config.list == [float("inf"), {"__float__": "x"}, {"__float__": 1, "more": 2}]


@pytest.mark.parametrize("kind", ["su", "longrope"])
@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_the_first_name_of_longrope_is_read_as_it(tmp_path: Path, kind: str, spelling: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    written = {
        **{"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96},
        **{"max_position_embeddings": 131072, "original_max_position_embeddings": 4096},
        **{"rope_theta": 10000.0, "rope_scaling": {spelling: kind, **factors}},
        **{"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 1},
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    rope = read_config(tmp_path).rope_parameters
    assert rope["rope_type"] == "longrope"
    assert rope["original_max_position_embeddings"] == 4096
