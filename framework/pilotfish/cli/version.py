"""`pilotfish --version`: the versions of all parts, as a report of a bug needs them.

Knows: package metadata and the native library's file. Does not know: torch, which takes seconds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import pilotfish

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "triton")
_NATIVE = Path(pilotfish.__file__).parent / "kernels" / "native"
_CHECKOUT = _NATIVE.parents[3]


def versions() -> Iterator[str]:
    """One line a part; the first is our own."""
    yield f"pilotfish {pilotfish.__version__}"
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        yield f"{name} {_version(name)}"
    yield f"native kernels: {native_kernels()}"
    plugins = sorted(entry_points(group="pilotfish"), key=lambda entry: entry.name)
    yield f"plugins: {', '.join(map(_plugin, plugins)) or 'none'}"


def native_kernels() -> str:
    """The instruction set that they would run with, or why there are none.

    `kernels.native.library` says the same, and imports torch.
    """
    limit = os.environ.get("PILOTFISH_INSTRUCTIONS", "")
    building = runpy.run_path(str(_NATIVE / "building.py"))  # its package imports torch
    given = os.environ.get("PILOTFISH_NATIVE_LIBRARY")
    path = Path(given or _NATIVE / building["library_name"]())
    if limit == "none":
        return "none: PILOTFISH_INSTRUCTIONS=none"
    if not path.exists():
        return f"{'refused' if given else 'none'}: there is no {path}"
    if (
        path.parent == _NATIVE
        and (_CHECKOUT / "hatch_build.py").exists()
        and building["is_stale"](path)
    ):
        return "none: compiled from other sources than there are now; run `make setup`"
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        return f"none: {error}"
    lib.pf_instruction_set.restype = ctypes.c_char_p
    names = [lib.pf_instruction_set(i).decode() for i in range(lib.pf_num_instruction_sets())]
    if limit and limit not in names:
        return f"refused: PILOTFISH_INSTRUCTIONS is {limit!r}; this library has {', '.join(names)}"
    first = names.index(limit) if limit else 0
    has = (name for i, name in enumerate(names) if i >= first and lib.pf_has_instruction_set(i))
    return next(has, f"none: this processor has none of {', '.join(names[first:])}")


def _plugin(entry: Any) -> str:
    """Its name; and its distribution, where that is not our own."""
    if entry.dist is None or entry.dist.name == "pilotfish":
        return str(entry.name)
    return f"{entry.name} ({entry.dist.name} {entry.dist.version})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
