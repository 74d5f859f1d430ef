"""Checkpoints on disk, made once a session and only when a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers

from llama3.families import save

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Case name -> directory of its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda case: save(case, folder)


@pytest.fixture(autouse=True)
def one_thread_for_tiny_tensors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads only get in each other's way here; the invariance tests keep them."""
    threads = torch.get_num_threads()
    if "invariance" not in request.path.name:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _probes(kept_probes: None) -> None:
    pass
