"""Fixtures: a local hub with a tiny model on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.local_hub import PATIENCE_S, LocalHub, serving
from hub.repositories import WEIGHTS
from pilotfish import load_registry
from pilotfish.testing import save_tiny


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

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2 * PATIENCE_S)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
