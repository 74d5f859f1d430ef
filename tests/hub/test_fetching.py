"""Hub ids, over a local server: what is fetched when."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from hub.local_hub import COMMIT, LocalHub
from hub.repositories import WEIGHTS
from pilotfish import LLM, SamplingParams
from pilotfish.cli import main
from pilotfish.errors import CheckpointError
from pilotfish.weights import open_checkpoint


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


@pytest.mark.parametrize("kind", ["zip", "parameters", "shards", "old"])
def test_of_torch_files_the_pickle_is_read_and_the_rest_fetched_for_the_first_tensor(
    hub: LocalHub, tiny: Path, kind: str
) -> None:
    """The old format, without an archive, is fetched whole."""
    tensors: dict[str, torch.Tensor] = load_file(tiny / WEIGHTS)
    names = sorted(tensors)
    tensors |= {"half": torch.zeros(3, 5).half().t(), "none": torch.zeros(0, 2)}
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.bfloat16):
        tensors[str(dtype)] = torch.zeros(400_000, dtype=dtype)[5:].view(5, -1)
    extra = tensors.keys() - names
    repo = hub.folder / "org/bin"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    files: dict[str, Any] = {"pytorch_model.bin": tensors}
    if kind == "parameters":
        held = OrderedDict((n, Parameter(one, requires_grad=False)) for n, one in tensors.items())
        held._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as of a Module
        files = {"pytorch_model.bin": held}
    if kind == "shards":
        first, second = ({name: tensors[name] for name in half} for half in (names, extra))
        files = {"a.bin": first, "b.bin": second}
        weight_map = {name: file for file, held in files.items() for name in held}
        index = repo / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, held in files.items():
        torch.save(held, repo / file, _use_new_zipfile_serialization=kind != "old")
    wanted = open_checkpoint(str(repo)).weights()
    source = open_checkpoint("org/bin").weights()
    assert dict(source.infos) == dict(wanted.infos)
    size = sum((repo / file).stat().st_size for file in files)
    assert (sum(hub.bodies[file] for file in files) < size / 2) == (kind != "old")
    for name in source:
        assert source.load(name).equal(wanted.load(name))


def test_inspect_names_the_format_of_the_files(
    hub: LocalHub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.folder / "org/bin"
    shutil.copytree(tiny, repo, ignore=shutil.ignore_patterns(WEIGHTS))
    torch.save(load_file(tiny / WEIGHTS), repo / "pytorch_model.bin")
    for model, wanted in (("org/tiny", "safetensors"), ("org/bin", "torch"), (repo, "torch")):
        assert main(["inspect", str(model), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == wanted


def test_a_sharded_repository_is_known_before_it_is_fetched(hub: LocalHub, tiny: Path) -> None:
    from safetensors.torch import save_file

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
