"""ask_for_strict_products: Intel's library told to add in one order, whatever the processor.

Knows: the call. Does not know: who multiplies; the probes find whether it was enough.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

# MKL_CBWR_AUTO | MKL_CBWR_STRICT: the processor's own kernels, in the form whose results depend
# neither on the sizes of the other matrices, nor on where numbers lie, nor on threads.
AUTO_STRICT = 0x10002


def ask_for_strict_products() -> bool:
    """Put MKL, if torch has it, in its strict mode for this process; whether it took it.

    It does only before its first product (afterwards MKL_CBWR=AUTO,STRICT in the environment is the
    way). Without it AVX2's float32 kernels round a row by its place among the others.
    """
    library = _library()
    if library is None:
        return False
    return strictness() == AUTO_STRICT or bool(library.mkl_serv_cbwr_set(AUTO_STRICT) == 0)


def strictness() -> int | None:
    """The mode that MKL is in; None without it."""
    library = _library()
    return None if library is None else int(library.mkl_serv_cbwr_get(-1))  # -1: MKL_CBWR_ALL


def _library() -> Any:
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not torch._C.has_mkl or not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    return library if hasattr(library, "mkl_serv_cbwr_set") else None
