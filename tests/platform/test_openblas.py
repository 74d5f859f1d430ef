"""What Triton's interpreter multiplies with: NumPy, asked for kernels that know no places."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import os, sys
assert "numpy" not in sys.modules
from pilotfish.platform.openblas import multiply_rows_alike
multiply_rows_alike()
assert "numpy" not in sys.modules
print(os.environ.get("OPENBLAS_CORETYPE"))
"""


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_a_row_of_a_tile_has_its_bits_at_every_place(size: int) -> None:
    """In this process: `conftest` asked for it."""
    random = np.random.default_rng(size)
    for width in (16, 64, 256):
        rows = random.standard_normal((size, width)).astype(np.float32)
        columns = random.standard_normal((width, size)).astype(np.float32)
        order = random.permutation(size)
        assert np.array_equal(np.matmul(rows[order], columns), np.matmul(rows, columns)[order])


@pytest.mark.parametrize("chosen", [None, "Haswell"])
def test_it_is_asked_before_numpy_and_the_users_choice_stays(chosen: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    if chosen is not None:
        environment["OPENBLAS_CORETYPE"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    is_x86 = os.uname().machine in ("x86_64", "amd64")
    assert done.stdout.strip() == (chosen or ("Sandybridge" if is_x86 else "None"))
