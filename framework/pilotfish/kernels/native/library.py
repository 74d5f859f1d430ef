"""The compiled library, and those of plugins: found, loaded once, and called.

Knows: ctypes, the instruction set in force, the threads it shares with torch. Does not know: any
kernel. Nothing is compiled here (see building.py).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels.native.building import (
    HERE,
    Library,
    is_stale,
    library_name,
    of_plugin,
    own_digest,
)

VARIABLE = "PILOTFISH_INSTRUCTIONS"
"""Environment variable: the best instruction set to be used (avx2, avx512, neon), or "none" for no
native kernels."""

FILE_VARIABLE = "PILOTFISH_NATIVE_LIBRARY"
"""Environment variable: another file than the one compiled into the package; it is taken as it is,
whatever sources it was compiled from."""

CHECKOUT = HERE.parents[3]
"""The repository, where the package is installed in place."""

ASKED: ContextVar[Callable[[str], None] | None] = ContextVar("ASKED", default=None)
"""Who hears of a plugin's native functions, by name, whenever one is called or planned."""

SMALL_WORK = 1 << 15
"""Elements below which one thread does the whole call: waking a second costs more."""


@attrs.frozen(eq=False)
class NativeLibrary:
    """instruction_set: in force. lib: the loaded file. index: of the instruction set in it."""

    lib: Any
    index: int
    instruction_set: str
    addresses: dict[str, int] = attrs.field(factory=dict)

    def address(self, name: str) -> int:
        """Of the function called `name`, as its kernel folder calls it."""
        found = self.addresses.get(name)
        if found is None:
            found = self.lib.pf_find(self.index, name.encode())
            assert found, f"the native library has no function {name!r}: build it again"
            self.addresses[name] = found
        return found


@cache
def library() -> NativeLibrary | None:
    """The library, or None where `why_not` says why.

    Raises ConfigError where an environment variable asks for what there is not.
    """
    return _load()[0]


@cache
def why_not() -> str:
    """Why there is no library, for people; "" where there is one."""
    return _load()[1]


class _NoLibrary(Exception):
    """Its message is what `why_not` says."""


@cache
def _load() -> tuple[NativeLibrary | None, str]:
    try:
        return _chosen(_opened(_file())), ""
    except _NoLibrary as error:
        return None, str(error)


def _file() -> Path:
    """Of the library, where there is one that may be used."""
    if os.environ.get(VARIABLE) == "none":
        raise _NoLibrary(f"{VARIABLE}=none")
    given = os.environ.get(FILE_VARIABLE)
    if given:
        if not Path(given).exists():
            raise ConfigError(
                f"{FILE_VARIABLE} is {given}: no such file; unset it for the package's own"
            )
        return Path(given)
    path = HERE / library_name()
    if not path.exists():
        raise _NoLibrary("it was not compiled when the package was installed (no C++ compiler?)")
    # Arguments are passed by address: a library with other records would read and write anywhere.
    if (CHECKOUT / "hatch_build.py").exists() and is_stale(path):
        raise _NoLibrary("it was compiled from other sources than there are now: run `make setup`")
    return path


def _opened(path: Path) -> Any:
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise _NoLibrary(f"it does not load: {error}") from error
    lib.pf_instruction_set.restype = ctypes.c_char_p
    lib.pf_find.restype = ctypes.c_void_p
    lib.pf_find.argtypes = (ctypes.c_int32, ctypes.c_char_p)
    lib.pf_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)
    lib.pf_run.restype = None
    lib.pf_run_one.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
    lib.pf_run_one.restype = None
    return lib


def _chosen(lib: Any) -> NativeLibrary:
    """The best instruction set that the processor has and the environment variable allows."""
    limit = os.environ.get(VARIABLE, "")
    names = [lib.pf_instruction_set(i).decode() for i in range(lib.pf_num_instruction_sets())]
    if limit and limit not in names:
        raise ConfigError(
            f"{VARIABLE} is {limit!r}; this library has {', '.join(names)}: name one of them, or "
            f"none for torch's kernels, or unset it for the best that the processor has"
        )
    first = names.index(limit) if limit else 0
    for index in range(first, len(names)):
        if lib.pf_has_instruction_set(index):
            _share_threads(lib)
            return NativeLibrary(lib, index, names[index])
    raise _NoLibrary(f"this processor has none of {', '.join(names[first:])}")


def _share_threads(lib: Any) -> None:
    """Hands over torch's OpenMP pool where it is GNU's; else the library has threads of its own."""
    loaded = _loaded_openmp()
    if loaded is None:
        return
    try:
        functions = [
            ctypes.cast(getattr(loaded, name), ctypes.c_void_p)
            for name in ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
        ]
    except AttributeError:
        return
    lib.pf_use_openmp(*functions)


def _loaded_openmp() -> Any:
    """The GNU OpenMP library that torch runs on; None where it has another, or none is sure."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:
        return None
    # torch's wheels bring theirs, in torch/lib or torch.libs; other packages beside it do so too.
    site = Path(torch.__file__).resolve().parents[1]
    folders = (f"{site / 'torch'}/", f"{site / 'torch.libs'}/")
    chosen = {path for path in paths if path.startswith(folders)} or paths
    return ctypes.CDLL(chosen.pop()) if len(chosen) == 1 else None


def run(name: str, args: ctypes.Structure, work: int, *, address: int = 0) -> None:
    """Call one function.

    address: of a plugin's own; 0 for the core's function called `name`.
    work: elements that it touches; few are done by one thread, else there are torch's number.
    """
    native = library()
    assert native is not None, why_not()
    address = address or native.addresses.get(name) or native.address(name)
    threads = 1 if work < SMALL_WORK else torch.get_num_threads()
    native.lib.pf_run_one(address, ctypes.addressof(args), threads)


@attrs.frozen(eq=False)
class PluginLibrary:
    """A plugin's own native functions, run by the core's threads. Made by `plugin_library`.

    folder: with the file, as building.py's `of_plugin` has it; it is loaded when first asked.
    """

    folder: Path
    _addresses: dict[tuple[bytes, str], int] = attrs.field(factory=dict)

    def why_not(self) -> str:
        """Why its functions cannot be called, for people; "" where they can."""
        return why_not() or _load_plugin(self.folder)[1]

    def address(self, name: str) -> int:
        """Of the function called `name`, for the instruction set that the core uses."""
        hears = ASKED.get()
        if hears is not None:
            hears(name)
        native = library()
        lib, reason = _load_plugin(self.folder)
        if native is None or lib is None:
            raise ConfigError(
                f"native kernels cannot be called: {reason}; compile them with `python -m "
                f"pilotfish.kernels.native {self.folder}`, or take --backend torch"
            )
        chosen = native.lib.pf_instruction_set(native.index)
        found = self._addresses.get((chosen, name))
        if found is None:
            found = lib.pf_find_in(chosen, name.encode())
            if not found:
                raise ConfigError(
                    f"the native library in {self.folder} has no function {name!r} for "
                    f"{chosen.decode()}; wanted one that its kernels.h lists"
                )
            self._addresses[chosen, name] = found
        return found

    def run(self, name: str, args: ctypes.Structure, work: int) -> None:
        """Call one function; as `run` of the core's."""
        run(name, args, work, address=self.address(name))


def plugin_library(folder: Path) -> PluginLibrary:
    """A plugin's library, which its build hook compiled into `folder` (see docs/kernels.md)."""
    return PluginLibrary(folder)


@cache
def _load_plugin(folder: Path) -> tuple[Any, str]:
    try:
        return _opened_plugin(of_plugin(folder)), ""
    except _NoLibrary as error:
        return None, str(error)


def _opened_plugin(built: Library) -> Any:
    native, path = library(), built.path()
    if native is None:
        raise _NoLibrary(why_not())
    if not path.exists():
        raise _NoLibrary(
            f"{path} was not compiled when its package was installed (no C++ compiler?)"
        )
    if built.table.exists() and f" own {own_digest(built)}".encode() not in path.read_bytes():
        raise _NoLibrary(f"{path} was compiled from other sources than lie beside it")
    is_ours = (CHECKOUT / "hatch_build.py").exists() and path.is_relative_to(CHECKOUT)
    if is_ours and is_stale(path, built):
        raise _NoLibrary(f"{path} was compiled from other sources than there are now: `make setup`")
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise _NoLibrary(f"{path} does not load: {error}") from error
    theirs, ours = lib.pf_interface(), native.lib.pf_interface()
    if theirs != ours:
        raise _NoLibrary(f"{path} has interface {theirs}; Pilotfish has {ours}: install both again")
    lib.pf_find_in.restype = ctypes.c_void_p
    lib.pf_find_in.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    return lib
