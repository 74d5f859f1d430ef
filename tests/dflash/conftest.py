"""Checkpoints on disk, made once a session and only when a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from dflash.checkpoints import CASES, save_draft, save_target

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Pair = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Case name -> directories of its target and its draft."""
    folder = tmp_path_factory.mktemp("dflash")
    return lambda case: (save_target(CASES[case].target, folder), save_draft(case, folder))


@pytest.fixture(scope="module", autouse=True)
def _probes(kept_probes: None) -> None:
    pass
