"""GGUF files of hub repositories: which one is meant, and when it is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hub.local_hub import LocalHub, serving
from hub.repositories import gguf_of_a_model, repository
from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.cli import main
from pilotfish.errors import CheckpointError, RouteError
from pilotfish.weights import open_checkpoint
from support.gguf_files import write_gguf


def test_one_file_of_a_gguf_repository_is_fetched(hub: LocalHub) -> None:
    repo = repository(hub, "org/gguf")
    for name in ("m-q4_k_m.gguf", "m-Q8_0.gguf"):
        write_gguf(repo / name, {}, {"general.architecture": "toy"})
    for wanted in ("Q4_K_M", "m-q4_k_m.gguf"):
        checkpoint = open_checkpoint(f"org/gguf:{wanted}")
        assert checkpoint.path.name == "m-q4_k_m.gguf"
        assert checkpoint.weight_format == "gguf"
    assert set(hub.bodies) == {"m-q4_k_m.gguf"}


def test_of_a_gguf_file_the_header_is_read_and_the_rest_fetched_for_the_first_tensor(
    hub: LocalHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is in the cache is used without a network, by its name and by its quantization."""
    from huggingface_hub import constants

    params = SamplingParams(temperature=0, max_tokens=5)
    name, wanted_name = "m-F32.gguf", "org/gguf:F32"
    repo = repository(hub, "org/gguf")
    size = gguf_of_a_model(repo / name, tiny).stat().st_size
    monkeypatch.setattr("pilotfish.weights.formats.gguf._FIRST_BYTES", 1024)
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


def test_the_only_gguf_file_of_a_repository_is_the_model(
    hub: LocalHub, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = repository(hub, "org/one")
    gguf_of_a_model(repo / "m-F32.gguf", tiny)
    (repo / "mmproj-F16.gguf").touch()
    assert main(["inspect", "org/one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"].endswith("m-F32.gguf")
