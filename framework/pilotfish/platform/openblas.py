"""multiply_rows_alike: NumPy's library told to round a row alike at every place of a matrix.

Knows: the variable. Does not know: who multiplies; Triton's interpreter does, with NumPy.
"""

from __future__ import annotations

import os
import platform

_VARIABLE = "OPENBLAS_CORETYPE"
_ALIKE = "Sandybridge"
"""Of OpenBLAS's kernels for x86, the newest before those that round a row by its place among the
others on processors with AVX2 and no AVX-512."""


def multiply_rows_alike() -> None:
    """To be called before NumPy is imported, unless the user chose kernels.

    A tile's product has no such places on a GPU, nor have the kernels that are interpreted.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault(_VARIABLE, _ALIKE)


def interprets_triton() -> bool:
    """Whether Triton's kernels run on a CPU in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
