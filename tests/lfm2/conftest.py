"""Checkpoints on disk, made once a session and only when a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from lfm2.checkpoints import save

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Case name -> directory of its checkpoint."""
    folder = tmp_path_factory.mktemp("lfm2")
    return lambda case: save(case, folder)


@pytest.fixture(scope="module", autouse=True)
def _probes(kept_probes: None) -> None:
    pass
