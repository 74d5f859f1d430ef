"""Hub ids, over a local server: what is fetched when, and what is said of what cannot be."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.cli import main
from pilotfish.errors import CapacityError, CheckpointError, ConfigError, RouteError
from pilotfish.testing import save_tiny
from pilotfish.weights import open_checkpoint

from .gguf_files import write_gguf
from .hub_server import COMMIT, LocalHub, serving

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return save_tiny("LlamaForCausalLM", "plain", folder, load_registry())


@pytest.fixture
def hub(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """With org/tiny, whose weights lie there once more in other formats."""
    served = LocalHub(tmp_path / "hub")
    repo = served.folder / "org/tiny"
    shutil.copytree(tiny, repo)
    for name in ("consolidated.safetensors", "original/model.safetensors", "onnx/config.json"):
        (repo / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny / WEIGHTS, repo / name)
    with serving(served, monkeypatch, tmp_path / "cache"):
        yield served


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the hub holds a file back, so that no read gives up before."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def repository(hub: LocalHub, name: str, **files: Any) -> Path:
    """A repository of JSON files; `_` stands for a dot."""
    path = hub.folder / name
    path.mkdir(parents=True)
    for file, value in files.items():
        (path / file.replace("_json", ".json")).write_text(json.dumps(value))
    return path


def test_weights_are_fetched_when_they_are_read_and_only_one_copy_of_them(
    hub: LocalHub, tiny: Path
) -> None:
    params = SamplingParams(temperature=0, max_tokens=5)
    wanted = LLM(str(tiny)).generate([1, 2, 3], params)[0].token_ids
    assert list(LLM("org/tiny").generate([1, 2, 3], params)[0].token_ids) == list(wanted)
    fetched = {name for name in hub.bodies if name.endswith("safetensors")}
    assert fetched == {WEIGHTS}
    assert "onnx/config.json" not in hub.bodies
    hub.bodies.clear()
    assert list(LLM("org/tiny@main").generate([1, 2, 3], params)[0].token_ids) == list(wanted)
    assert not [name for name in hub.bodies if name.endswith("safetensors")], "from the cache"


def test_inspect_reads_headers_alone(
    hub: LocalHub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (tiny / WEIGHTS).stat().st_size
    assert main(["inspect", "org/tiny", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert hub.bodies[WEIGHTS] < size / 2
    assert main(["inspect", str(tiny), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    for name in ("architecture", "parameters", "dtype", "max_seq_len"):
        assert ours[name] == plain[name]
    assert ours["memory"]["weights_bytes"] == plain["memory"]["weights_bytes"]


def test_inspect_names_the_format_of_the_files(
    hub: LocalHub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    repo = hub.folder / "org/bin"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    torch.save(load_file(tiny / WEIGHTS), repo / "pytorch_model.bin")
    for model, wanted in (("org/tiny", "safetensors"), ("org/bin", "torch"), (repo, "torch")):
        assert main(["inspect", str(model), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == wanted


def test_a_sharded_repository_is_known_before_it_is_fetched(hub: LocalHub, tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / WEIGHTS)
    repo = hub.folder / "org/sharded"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    names = sorted(tensors)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, of_file in halves.items():
        save_file({name: tensors[name] for name in of_file}, repo / file)
    weight_map = {name: file for file, of_file in halves.items() for name in of_file}
    index = repo / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    source = open_checkpoint("org/sharded").weights()
    assert {name: info.shape for name, info in source.infos.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert source.load(names[0]).equal(tensors[names[0]])
    assert source.load(names[-1]).equal(tensors[names[-1]])
    (repo / "b.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": {**weight_map, "x": "c.safetensors"}}))
    shutil.rmtree(Path(open_checkpoint("org/sharded").path).parents[1])
    with pytest.raises(CheckpointError, match=r"does not have: b\.safetensors, c\.safetensors"):
        dict(open_checkpoint("org/sharded").weights().infos)


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
    monkeypatch.setattr("pilotfish.engine.planning.available_bytes", lambda device: 1000)
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


def test_one_file_of_a_gguf_repository_is_fetched(hub: LocalHub) -> None:
    repo = repository(hub, "org/gguf")
    for name in ("m-q4_k_m.gguf", "m-Q8_0.gguf"):
        write_gguf(repo / name, {}, {"general.architecture": "toy"})
    for wanted in ("Q4_K_M", "m-q4_k_m.gguf"):
        checkpoint = open_checkpoint(f"org/gguf:{wanted}")
        assert checkpoint.path.name == "m-q4_k_m.gguf"
        assert checkpoint.weight_format == "gguf"
    assert set(hub.bodies) == {"m-q4_k_m.gguf"}


def test_the_caches_own_folder_is_no_checkpoint_but_its_snapshots_are(hub: LocalHub) -> None:
    snapshot = open_checkpoint("org/tiny").path
    assert snapshot.name == COMMIT
    with pytest.raises(CheckpointError, match=rf"the hub's cache: give one of snapshots/{COMMIT}"):
        open_checkpoint(str(snapshot.parents[1]))
    assert open_checkpoint(str(snapshot)).model_config().architecture == "LlamaForCausalLM"


def test_a_half_fetched_repository_is_gone_on_with(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is in the cache and the weights are not: they are fetched, or it is said why."""
    checkpoint = open_checkpoint("org/tiny")
    assert not (checkpoint.path / WEIGHTS).exists()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="not whole in the local cache, and it cannot be"):
        dict(open_checkpoint("org/tiny").weights().infos)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source = open_checkpoint("org/tiny").weights()
    source.load(next(iter(source)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(open_checkpoint("org/tiny").weights().infos) == len(source.infos)


def gguf_of_a_model(path: Path, plain: Path) -> Path:
    """The tiny model as a GGUF file with a header of more than 8 KiB."""
    from safetensors.torch import load_file

    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    config = json.loads((plain / "config.json").read_text())
    tensors = {}
    for whole, tensor in load_file(plain / WEIGHTS).items():
        name = whole
        for ours, theirs in sorted(names.items(), key=lambda item: -len(item[0])):
            name = name.replace(ours, theirs)
        tensors[name] = (tensor.float().numpy(), None)
    metadata = {
        "llama.context_length": 64,
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": config["vocab_size"],
        "general.description": "x" * 8192,
    }
    return write_gguf(path, tensors, metadata, "llama")


def test_of_a_gguf_file_the_header_is_read_and_the_rest_fetched_for_the_first_tensor(
    hub: LocalHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is in the cache is used without a network, by its name and by its quantization."""
    from huggingface_hub import constants

    params = SamplingParams(temperature=0, max_tokens=5)
    name, wanted_name = "m-F32.gguf", "org/gguf:F32"
    repo = repository(hub, "org/gguf")
    size = gguf_of_a_model(repo / name, tiny).stat().st_size
    monkeypatch.setattr("pilotfish.weights.gguf._FIRST_BYTES", 1024)
    assert main(["inspect", wanted_name]) == 0
    assert 8192 < hub.bodies[name] < size / 2
    assert not open_checkpoint(wanted_name, load_registry()).path.exists()
    local = tmp_path / name
    shutil.copy(repo / name, local)
    wanted = list(LLM(str(local)).generate([1, 2, 3], params)[0].token_ids)
    assert list(LLM(wanted_name).generate([1, 2, 3], params)[0].token_ids) == wanted
    hub.bodies.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in (wanted_name, f"org/gguf:{name}", f"org/gguf@main:{name}"):
        assert list(LLM(model).generate([1, 2, 3], params)[0].token_ids) == wanted
    assert not hub.bodies
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set; unset it, or give a path$"):
        open_checkpoint("org/gguf:Q8_0")


def test_what_a_gguf_header_says_is_refused_before_the_file_is_fetched(hub: LocalHub) -> None:
    repo = repository(hub, "org/gguf")
    data = np.zeros((1 << 10, 1 << 10), np.float32)
    write_gguf(repo / "m-F32.gguf", {"x": (data, None)}, architecture="unheard-of")
    with pytest.raises(RouteError, match="no plugin reads a GGUF file of architecture 'unheard-of"):
        open_checkpoint("org/gguf:F32", load_registry())
    assert hub.bodies["m-F32.gguf"] < data.nbytes / 2


def test_a_cached_gguf_is_found_without_a_wait_where_the_hub_is_down(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = LocalHub(tmp_path / "hub")
    gguf_of_a_model(repository(served, "org/gguf") / "m-F32.gguf", tiny)
    with serving(served, monkeypatch, tmp_path / "cache"):
        source = open_checkpoint("org/gguf:F32", load_registry()).weights()
        source.load(next(iter(source)))
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert open_checkpoint("org/gguf:F32", load_registry()).path.is_file()
    with pytest.raises(
        CheckpointError, match=r"cannot be fetched from the hub .*check the network"
    ):
        open_checkpoint("org/gguf:Q8_0", load_registry())
    assert not waits


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac\nsize 281336\n"
BROKEN: dict[str, tuple[Any, str]] = {
    "pointer": (lambda _: POINTER, "a Git LFS pointer, not the file that it stands for"),
    "page": (lambda _: b"<!DOCTYPE html><html></html>", "a header that does not fit 28 bytes"),
    "empty": (lambda _: b"", "a header that does not fit 0 bytes"),
    "cut header": (lambda data: data[:300], "a header that does not fit 300 bytes"),
    "cut": (lambda data: data[:-100], "bytes where the header wants"),
    "longer": (lambda data: data + bytes(100), "bytes where the header wants"),
}


@pytest.mark.parametrize("does_ranges", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_on_the_hub_is_told_from_a_broken_network(
    hub: LocalHub, tiny: Path, kind: str, does_ranges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = BROKEN[kind]
    hub.does_ranges = does_ranges
    repo = hub.folder / "org/broken"
    shutil.copytree(tiny, repo)
    (repo / WEIGHTS).write_bytes(spoil((tiny / WEIGHTS).read_bytes()))
    assert main(["inspect", "org/broken"]) == 2
    error = capsys.readouterr().err
    assert f"org/broken/{WEIGHTS}: " in error
    assert said in error
    assert "it is so on the hub: take another repository" in error


@pytest.mark.parametrize("kind", ["pointer", "page"])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_inspect_refuses_small_files_that_cannot_be_read(
    hub: LocalHub, tiny: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.folder / "org/broken"
    shutil.copytree(tiny, repo)
    (repo / name).write_bytes(BROKEN[kind][0](b""))
    assert main(["inspect", "org/broken"]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "it is so on the hub: take another repository" in error


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_of_a_damaged_file_in_the_cache_it_is_said_what_to_delete(
    hub: LocalHub, tiny: Path, name: str
) -> None:
    def read() -> None:
        source = open_checkpoint("org/tiny").weights()
        source.load(next(iter(source)))

    read()
    cached = open_checkpoint("org/tiny").path / name
    cached.resolve().write_bytes(cached.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"delete .*, and it is fetched anew") as caught:
        read()
    named = re.search("delete (.*), and it", str(caught.value))
    assert named is not None
    Path(named[1]).unlink()
    read()


def sharded(hub: LocalHub, tiny: Path) -> list[str]:
    """org/sharded, in two files -> their names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / WEIGHTS)
    repo = hub.folder / "org/sharded"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, repo / file)
    index = repo / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


@pytest.mark.parametrize("stuck", [f"{WEIGHTS}", "the first shard", "part of the first shard"])
@pytest.mark.usefixtures("patience")
def test_an_interrupt_ends_a_fetch_that_hangs(
    hub: LocalHub, tiny: Path, tmp_path: Path, stuck: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "org/tiny" if stuck == WEIGHTS else "org/sharded"
    hub.stuck = stuck.replace("the first shard", sharded(hub, tiny)[0])
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt_token_ids": [1, 2, 3]}))

    def interrupt() -> None:
        hub.asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(["generate", model, "--input-file", str(requests)]) == 130
    assert not hub.waited
    assert "pilotfish: interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.let_go.set()
    hub.stuck = ""
    assert main(["generate", model, "--input-file", str(requests), "--max-tokens", "3"]) == 0


def test_a_command_that_ends_looks_for_no_garbage() -> None:
    """So that one that was interrupted ends at once, with all of torch and transformers loaded."""
    program = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
        "from pilotfish.cli import main\n"
        "main(['--version'])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("kind", ["a file", "below a file", "read only"])
def test_a_cache_that_cannot_be_written_is_named(
    hub: LocalHub,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file/cache"}.get(kind)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    if folder is None:
        folder = tmp_path / "cache"
        monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    assert main(["inspect", "org/tiny"]) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"cache folder {re.escape(str(folder))} cannot be written \(.+\); set HF_", error
    )
    assert "network" not in error


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (429, "the hub asks to wait (429, too many requests); try again later, or log in"),
        (500, "the hub's own fault (500); try again later"),
        (503, "the hub's own fault (503); try again later"),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.usefixtures("no_waits")
def test_what_the_hub_itself_fails_at(
    hub: LocalHub, code: int, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing[name] = code
    assert main(["inspect", "org/tiny"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "network" not in line


def test_a_fault_of_the_network_is_said_once_without_addresses(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["inspect", "org/tiny"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"fetched from the hub \([^()]*Connection refused\); check the network", line)
    assert line.count("refused") == 1


def test_an_account_without_access_is_told_so(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.restricted = ("org/tiny",)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert main(["inspect", "org/tiny"]) == 2
    error = capsys.readouterr().err
    assert "the account that is logged in has none yet (403); ask for it on http" in error
    assert "log in:" not in error


def write_tokenizer(folder: Path, words: int = 20, **config: Any) -> None:
    """A vocabulary of whole words, w0 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


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


def test_the_only_gguf_file_of_a_repository_is_the_model(
    hub: LocalHub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = repository(hub, "org/one")
    gguf_of_a_model(repo / "m-F32.gguf", tiny)
    (repo / "mmproj-F16.gguf").touch()
    assert main(["inspect", "org/one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"].endswith("m-F32.gguf")


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
