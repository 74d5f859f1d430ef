"""Host memory: what a pass frees stays with the process, for the next pass.

Knows: glibc's malloc. Does not know: plans or passes.

A pass on a CPU makes and drops the same arrays in every layer. glibc returns large ones to the
system at once, and takes them back page by page at the first touch: up to 40 % of a prefill's time.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

KEPT_BYTES = 256 << 20
"""Free memory at the heap's end that is kept; more is returned. Free memory that lies below memory
in use is kept whatever its size."""
LARGEST = 32 << 20
"""Arrays above this are always mapped and returned, as without us: their time is elsewhere."""

_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = 1, -1, -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = tuple(
    f"glibc.malloc.{name}" for name in ("trim_threshold", "mmap_threshold", "hugetlb")
)


def keep_freed_memory() -> bool:
    """Tells malloc so, for the whole process. Returns whether it took it.

    It also stops keeping small free pieces apart (`M_MXFAST`), unless the user has set that.
    Nothing is done where the user has set malloc's thresholds (MALLOC_TRIM_THRESHOLD_,
    MALLOC_MMAP_THRESHOLD_, or in GLIBC_TUNABLES), or where the C library is another one.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in tunables for name in _TUNABLES) or any(n in os.environ for n in _SETTINGS):
        return False
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    took_mmap = mallopt(_M_MMAP_THRESHOLD, LARGEST)
    if not (took_mmap and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)):
        return False
    if "glibc.malloc.mxfast" not in tunables:
        # Small free pieces are otherwise kept apart, and all joined whenever an array is made.
        mallopt(_M_MXFAST, 0)
    return True


def return_freed_memory() -> None:
    """Gives all free memory back to the system, whatever is kept; for when a model is closed."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
