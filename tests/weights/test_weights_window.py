"""A stretch of a file as a tensor: mapped or, where it is small, read."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pilotfish.errors import CheckpointError
from pilotfish.weights.formats import window
from pilotfish.weights.formats.window import read_window

SMALL = window._SMALL_BYTES
SIZE = 3 * SMALL + 5
CONTENTS = os.urandom(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("window") / "weights"
    file.write_bytes(CONTENTS)
    return file


@given(st.integers(0, SIZE), st.integers(0, SIZE))
@example(mmap.ALLOCATIONGRANULARITY + 3, SMALL)
@example(mmap.ALLOCATIONGRANULARITY + 3, SMALL + 1)
@example(SIZE, 0)
def test_it_is_the_files_and_may_be_written(path: Path, offset: int, num_bytes: int) -> None:
    num_bytes = min(num_bytes, SIZE - offset)
    wanted = CONTENTS[offset : offset + num_bytes]
    found = read_window(path, offset, num_bytes)
    assert (found.dtype, found.shape) == (torch.uint8, (num_bytes,))
    assert bytes(found.numpy()) == wanted
    found.fill_(7)
    assert path.read_bytes() == CONTENTS


@pytest.mark.parametrize("num_bytes", [10, SMALL, SMALL + 10])
def test_a_file_that_became_shorter_is_refused(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "weights"
    file.write_bytes(CONTENTS[: num_bytes + 4])
    with pytest.raises(CheckpointError, match=f"the file ends at byte {num_bytes + 4}"):
        read_window(file, 5, num_bytes)
    file.unlink()
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        read_window(file, 5, num_bytes)


@pytest.mark.parametrize("num_bytes", [10, SMALL + 10])
def test_it_outlives_the_file(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "weights"
    file.write_bytes(CONTENTS)
    found = read_window(file, 3, num_bytes)
    file.unlink()
    file.write_bytes(bytes(SIZE))
    assert bytes(found.numpy()) == CONTENTS[3 : 3 + num_bytes]


def test_no_file_stays_open(path: Path) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("this system does not say which files are open")
    before = len(list(open_files.iterdir()))
    held = [read_window(path, 0, size) for size in (1, SMALL, SMALL + 1) for _ in range(5)]
    assert len(list(open_files.iterdir())) == before
    assert len(held) == 15
