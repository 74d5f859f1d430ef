"""What is refused before weights are fetched, and in which words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hub.local_hub import LocalHub
from hub.repositories import WEIGHTS, repository, write_tokenizer
from pilotfish import LLM
from pilotfish.cli import main
from pilotfish.errors import CapacityError, CheckpointError, ConfigError, RouteError
from pilotfish.weights import open_checkpoint
from support.gguf_files import write_gguf


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"architectures": ["GptOssForCausalLM"]}, RouteError, "no plugin serves the architecture"),
        ({"quantization_config": {"quant_method": "fp8"}}, ConfigError, "is quantized"),
        ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers"),
    ],
)
def test_what_a_config_says_is_refused_before_weights_are_fetched(
    hub: LocalHub, tiny: Path, config: dict[str, Any], error: type[Exception], said: str
) -> None:
    written = json.loads((tiny / "config.json").read_text())
    repo = repository(hub, "org/other", config_json={**written, **config})
    shutil.copy(tiny / WEIGHTS, repo / WEIGHTS)
    with pytest.raises(error, match=said):
        LLM("org/other")
    assert WEIGHTS not in hub.bodies


def test_tensors_and_memory_are_refused_before_weights_are_fetched(
    hub: LocalHub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tiny / WEIGHTS).stat().st_size
    monkeypatch.setattr("pilotfish.loading.planning.available_bytes", lambda device: 1000)
    with pytest.raises(CapacityError, match="the weights alone do not fit"):
        LLM("org/tiny")
    assert hub.bodies[WEIGHTS] < size / 2
    written = json.loads((tiny / "config.json").read_text())
    repo = repository(hub, "org/deep", config_json={**written, "num_hidden_layers": 9})
    shutil.copy(tiny / WEIGHTS, repo / WEIGHTS)
    hub.bodies.clear()
    with pytest.raises(CheckpointError, match=r"missing: .*Check that no file is left out"):
        LLM("org/deep")
    assert hub.bodies[WEIGHTS] < size / 2


LINES: dict[str, str] = {
    "org/gated": "org/gated: access is restricted on the hub; ask for it on http://127.0.0.1:",
    "org/nothing": "org/nothing: no such file or directory here, and no such repository on the hub",
    "org/tiny@v9": "org/tiny: the repository has no such branch, tag or commit",
    "org/gguf": "no config.json; .* m-Q4_K_M.gguf, m-Q8_0.gguf: name one, as in org/gguf:m-Q",
    "org/gguf:Q3_K": "org/gguf: none of its files is 'Q3_K'; wanted one of .*m-Q4_K_M.gguf, m-Q8_0",
    "org/lora": "no config.json; .* it is an adapter of org/base, .* merge it into that model",
    "org/gguf:Q2_K": "'Q2_K' is in parts, which are not read: m-Q2_K-00001-of-.*00002.gguf; fetch",
    "org/gguf:m-Q2_K-00001-of-00002.gguf": "is in parts, .*; fetch all parts, merge them into one",
    "org/empty": "org/empty: no weights in the repository; wanted one of model.safetensors, .*bin",
    "org/shards": "it has 2 shards .*-00001-of-00002.safetensors, .* get model.safetensors.index",
    "org/lora2": "no weights in the repository; .* it is an adapter of org/base, .* merge it into",
    "https://huggingface.co/org/tiny/tree/main": "no such file .* or 'demo'; write org/tiny$",
    "hf.co/org/tiny": "or 'demo'; write org/tiny$",
    "org/tiny/": "or 'demo'; write org/tiny$",
    "org/tiny/more": "or 'demo'$",
    "org/pth": "org/pth: no weights in the repository; .* it has consolidated.00.pth",
}


@pytest.mark.parametrize("model", LINES)
def test_what_cannot_be_fetched_is_one_line_that_says_what_to_do(
    hub: LocalHub, tiny: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.restricted = ("org/gated",)
    config = json.loads((tiny / "config.json").read_text())
    repository(hub, "org/gated", config_json=config)
    repository(hub, "org/lora", adapter_config_json={"base_model_name_or_path": "org/base"})
    repository(hub, "org/empty", config_json=config)
    adapter = {"base_model_name_or_path": "org/base"}
    repository(hub, "org/lora2", config_json=config, adapter_config_json=adapter)
    shards = repository(hub, "org/shards", config_json=config)
    for part in (1, 2):
        (shards / f"model-0000{part}-of-00002.safetensors").touch()
    (repository(hub, "org/pth", config_json=config) / "consolidated.00.pth").touch()
    ggufs = repository(hub, "org/gguf")
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        write_gguf(ggufs / name, {})
    for part in (1, 2):
        write_gguf(ggufs / f"m-Q2_K-0000{part}-of-00002.gguf", {})
    capsys.readouterr()
    assert main(["inspect", model]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("pilotfish: error: ")
    assert re.search(LINES[model], line), line


@pytest.mark.parametrize("weight_map", [None, 5, "x", [], [1], {}, {"a": None}, {"a": ["b"]}])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_no_files(
    hub: LocalHub, tiny: Path, index: str, weight_map: object
) -> None:
    repo = hub.folder / "org/odd"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    (repo / index).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="no weight_map; wanted tensor names with their"):
        dict(open_checkpoint("org/odd").weights().infos)


PROMPT, CHAT = ["--prompt", "w1 w2"], ["--chat", "w1 w2"]


EARLY: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "no tokenizer": (PROMPT, {}, "no tokenizer; give prompt_token_ids in a line of --input-file"),
    "no template": (
        CHAT,
        {"words": 20},
        r"has no chat template; give a plain prompt \(gen.*, or a template with --chat-t",
    ),
    "broken template": (
        CHAT,
        {"words": 20, "chat_template": "{% for"},
        "chat template is not valid, line 1: .*; give another with --chat-template",
    ),
    "sampling": (
        PROMPT,
        {"words": 20, "sampling": {"temperature": "hot"}},
        "temperature 'hot'; wanted a number .*, or give --generation-config none",
    ),
    "a token beyond the vocabulary": (
        ["--prompt", "w1 w9999"],
        {"words": 10_000},
        "token 1 of the prompt is 9999; wanted a whole number from 0 to",
    ),
}


@pytest.mark.parametrize("kind", EARLY)
def test_what_small_files_and_the_prompt_say_is_refused_before_weights_are_fetched(
    hub: LocalHub, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, given, said = EARLY[kind]
    repo, cache = hub.folder / "org/tiny", tmp_path / "cache"
    files = dict(given)
    sampling = files.pop("sampling", None)
    if files:
        write_tokenizer(repo, **files)
    if sampling:
        (repo / "generation_config.json").write_text(json.dumps(sampling))
    assert main(["generate", "org/tiny", *flags]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line
    if flags == CHAT:
        assert main(["chat", "org/tiny"]) == 2
    assert not list(cache.rglob(WEIGHTS))
    capsys.readouterr()
    assert main(["inspect", "org/tiny", "--json"]) == 0
    warnings = " ".join(json.loads(capsys.readouterr().out)["warnings"])
    wanted = "the tokenizer has 10000 ids and the model knows" if "9999" in said else said
    assert re.search(wanted.removeprefix("request 1: "), warnings), warnings


def test_what_has_no_room_is_not_fetched(
    hub: LocalHub, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (tiny / WEIGHTS).stat().st_size
    usage = shutil.disk_usage(tiny)._replace(free=size - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs .* MB in .*, where .* free; .* set HF_HOME"):
        LLM("org/tiny")
    assert hub.bodies[WEIGHTS] < size / 2
    assert "Not enough free disk space" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", '{"added_tokens_decoder": 5}'])
def test_the_file_of_a_tokenizer_that_is_broken_is_named(
    hub: LocalHub, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.folder / "org/tiny"
    write_tokenizer(repo)
    (repo / "tokenizer_config.json").write_text(text)
    assert main(["inspect", "org/tiny"]) == 2
    error = capsys.readouterr().err
    assert "tokenizer_config.json: " in error
    assert "tokenizer.json" not in error
    assert "delete" not in error


def test_a_token_that_is_refused_is_named(
    hub: LocalHub, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token = "hf_good"
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    repository(hub, "org/gguf")
    for model in ("org/tiny", "org/gguf:Q4_0"):
        assert main(["inspect", model]) == 2
        error = capsys.readouterr().err
        assert "the hub refuses the access token, which is wrong or has expired (401)" in error
        assert "unset HF_TOKEN" in error
        assert "network" not in error
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert main(["inspect", "org/tiny"]) == 0


def test_an_account_without_access_is_told_so(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.restricted = ("org/tiny",)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert main(["inspect", "org/tiny"]) == 2
    error = capsys.readouterr().err
    assert "the account that is logged in has none yet (403); ask for it on http" in error
    assert "log in:" not in error
