"""How the native library is compiled: which compiler, which files, once for each instruction set.

Knows: commands, the core's library and that of a plugin with kernels of its own. Does not know:
torch, or how a library is used. Imports the standard library only: the build hook of the package
runs this file, and so may a plugin's.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
SOURCE = HERE / "source"
KERNELS = HERE.parent

VARIABLE = "PILOTFISH_NATIVE"
"""Environment variable of an installation: "require" (no library is an error), "zig" (likewise,
and the compiler is the package ziglang, fetched for the build), "skip" (compile nothing)."""

TARGET_VARIABLE = "PILOTFISH_NATIVE_TARGET"
"""Environment variable of an installation: one of TARGETS, compiled for with ziglang."""

ZIG_REQUIREMENT = "ziglang>=0.17.1"

COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-warning-option",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
TABLE = ("-fno-exceptions", "-fno-rtti")
"""Kernels throw nothing: what calls them could not catch it."""

_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mprefer-vector-width=512",
)
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx2": _AVX2, "avx512": _AVX512},
    "aarch64": {"neon": ()},
}
"""Machine -> instruction set -> what the compiler is told beside COMMON. processor.h asks for it
all."""

SUFFIXES = {"linux": ".so", "darwin": ".dylib", "windows": ".dll"}


class Library(NamedTuple):
    """What a library is compiled from, and where it lies.

    name: of the file, without its ending. folder: where the file belongs. table: the kernels.h that
    lists the functions. main: compiled once, whatever the instruction set. kernels: the folder that
    the table's includes start from.
    """

    name: str
    folder: Path
    table: Path
    main: Path
    kernels: Path

    def file_name(self, system: str | None = None) -> str:
        """On a system: "linux", "darwin" or "windows"; None: this one."""
        return self.name + SUFFIXES.get(system or platform.system().lower(), ".so")

    def path(self) -> Path:
        """Where this machine's file belongs."""
        return self.folder / self.file_name()

    def sources(self) -> list[Path]:
        """Every file that it is compiled from."""
        found = {*self.own_sources(), *INCLUDE.glob("**/*.h"), *SOURCE.glob("*.map")}
        return sorted(found | {self.main, SOURCE / "table.cpp", *SOURCE.glob("*.h")})

    def own_sources(self) -> list[Path]:
        """Those of its kernels, which for a plugin's library are the plugin's own."""
        return sorted({*self.kernels.glob("**/*.h"), self.table})


CORE = Library("_pilotfish_native", HERE, SOURCE / "kernels.h", SOURCE / "main.cpp", KERNELS)


def of_plugin(folder: Path) -> Library:
    """A plugin's: `folder` has its kernels.h, whose includes start from the folder above."""
    return Library(
        "_plugin_native", folder, folder / "kernels.h", SOURCE / "plugin.cpp", folder.parent
    )


class Target(NamedTuple):
    """triple: zig's name. tag: of a wheel with such a library."""

    system: str
    machine: str
    triple: str
    tag: str


TARGETS = {
    "linux-x86_64": Target("linux", "x86_64", "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64"),
    "linux-aarch64": Target("linux", "aarch64", "aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64"),
    "macos-arm64": Target("darwin", "aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "windows-x86_64": Target("windows", "x86_64", "x86_64-windows-gnu", "win_amd64"),
}
"""What can be compiled for on any machine that has the package ziglang."""


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which and how."""


def library_name(system: str | None = None) -> str:
    """File name of the core's library; see `Library.file_name`."""
    return CORE.file_name(system)


def machine() -> str:
    """This machine, as INSTRUCTION_SETS names it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def digest(library: Library = CORE) -> str:
    """Of the sources as they are now, and of what compilers are told: twice 16 hex digits, of all
    and of `own_sources`.
    """
    told = hashlib.sha256(repr((COMMON, TABLE, INSTRUCTION_SETS)).encode())
    return f"{_digest(told, library, library.sources())} own {own_digest(library)}"


def own_digest(library: Library) -> str:
    """Of `own_sources` alone."""
    return _digest(hashlib.sha256(), library, library.own_sources())


def _digest(total: Any, library: Library, paths: Sequence[Path]) -> str:
    for path in paths:
        text = path.read_bytes()
        root = library.kernels if path.is_relative_to(library.kernels) else KERNELS
        total.update(f"\n{path.relative_to(root).as_posix()} {len(text)}\n".encode())
        total.update(text)
    return str(total.hexdigest()[:16])


def is_stale(file: Path, library: Library = CORE) -> bool:
    """Whether the file is missing, or was compiled from other sources than there are now."""
    if not file.exists():
        return True
    return f"pilotfish sources {digest(library)}".encode() not in file.read_bytes()


def zig() -> list[str] | None:
    """The command of the package ziglang's C++ compiler; None where it is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    return [sys.executable, "-m", "ziglang", "c++"]


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: $CXX, g++, clang++, c++, the PyPI package ziglang; or None."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    return zig()


def build(
    output: Path,
    *,
    library: Library = CORE,
    compiler: Sequence[str] | None = None,
    target: Target | None = None,
    target_machine: str | None = None,
    options: Sequence[str] = (),
) -> None:
    """Compile a library to `output`, which is written last and whole, or not at all.

    target: compiled for with ziglang. target_machine: "x86_64" or "aarch64", which `compiler`
    makes code for; None: this one. options: more for every command.
    Raises BuildError where there is no compiler, or with what it printed where it failed.
    """
    if target is not None:
        compiler, target_machine = zig(), target.machine
        options = ("-target", target.triple, *options)
    command = list(compiler or ("" if target else find_compiler()) or ())
    if not command:
        raise BuildError(
            "no C++ compiler was found; wanted g++, clang++, $CXX or the package ziglang "
            "(pip install ziglang)"
        )
    if "ziglang" in command and target is None:
        options = ("-mcpu=baseline", *options)  # else it takes all that this processor has
    sets = INSTRUCTION_SETS.get(target_machine or machine())
    if sets is None:
        raise BuildError(f"no kernels are written for {target_machine or machine()}")
    includes = [f"-I{INCLUDE}", f"-I{SOURCE}", f"-I{library.kernels}", f"-I{KERNELS}"]
    with tempfile.TemporaryDirectory() as folder:
        objects = {"main": [f'-DPF_SOURCES="{digest(library)}"', str(library.main)]}
        table = f'-DPF_KERNELS_H="{library.table.as_posix()}"'
        for name, flags in sets.items():
            objects[name] = [*flags, *TABLE, f"-DPF_ISA={name}", table, str(SOURCE / "table.cpp")]

        def compile_one(name: str) -> str:
            made = str(Path(folder, f"{name}.o"))
            _run([*command, *COMMON, *options, *includes, "-c", *objects[name], "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made = list(pool.map(compile_one, objects))
        whole = str(Path(folder, output.name))
        _run([*command, *options, "-shared", "-o", whole, *made, *_linked(command, output)])
        output.parent.mkdir(parents=True, exist_ok=True)
        waiting = output.with_name(f".{output.name}.{os.getpid()}")
        shutil.copy(whole, waiting)
        os.replace(waiting, output)


def _linked(command: Sequence[str], output: Path) -> list[str]:
    """What the linker is told beside the objects."""
    told = []
    if output.suffix == SUFFIXES["linux"]:
        told += [f"-Wl,--version-script={SOURCE / 'exports.map'}"]
    if "ziglang" not in command:
        # No libstdc++ of the build machine's: an older one may be loaded where the library runs.
        told += ["-static-libstdc++", "-static-libgcc", "-lpthread"]
    return told


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[:30])
        raise BuildError(f"{shlex.join(command)}\nfailed with {done.returncode}:\n{said}")


def wanted() -> tuple[str, Target | None]:
    """What the two environment variables say; BuildError where they say what is not known."""
    mode, target = os.environ.get(VARIABLE, ""), os.environ.get(TARGET_VARIABLE, "")
    if mode not in ("", "require", "zig", "skip"):
        raise BuildError(f"{VARIABLE} is {mode!r}; wanted 'require', 'zig', 'skip' or nothing")
    if target and target not in TARGETS:
        raise BuildError(f"{TARGET_VARIABLE} is {target!r}; wanted one of {', '.join(TARGETS)}")
    return mode, TARGETS[target] if target else None


def install(output: Path, library: Library = CORE) -> str:
    """Compile to `output` for an installation, as the environment variables want it.

    Returns "", or for people why there is no library and what follows from it. BuildError instead
    where a library is required.
    """
    mode, target = wanted()
    if mode == "skip":
        return f"The native CPU kernels were not compiled: {VARIABLE}=skip."
    try:
        if mode == "zig" and zig() is None:
            raise BuildError("the package ziglang is not installed (pip install ziglang)")
        compiler = zig() if mode == "zig" else None
        build(output, library=library, compiler=compiler, target=target)
    except BuildError as error:
        if mode in ("require", "zig") or target is not None:
            raise
        return (
            f"The native CPU kernels were not compiled: {error}\n"
            "On a CPU Pilotfish then runs with torch's kernels: slower, and with bits that depend "
            "on the processor.\nInstall a C++ compiler (Debian: apt install g++; macOS: "
            f"xcode-select --install) or set {VARIABLE}=zig, and install Pilotfish again."
        )
    return ""


def main() -> None:
    """Compile the core's library beside these sources, or plugins' in their folders."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--if-stale", action="store_true", help="only where a source is newer; no failure"
    )
    parser.add_argument("plugins", nargs="*", type=Path, help="folders with a kernels.h")
    options = parser.parse_args()
    for library in [of_plugin(folder.resolve()) for folder in options.plugins] or [CORE]:
        output = library.path()
        if not options.if_stale:
            try:
                build(output, library=library)
            except BuildError as error:
                sys.exit(f"error: {error}")
            print(output)
        elif os.environ.get(VARIABLE) != "skip" and is_stale(output, library):
            print(f"== native CPU kernels: compiling them into {output}", file=sys.stderr)
            print(install(output, library) or "== compiled", file=sys.stderr)


if __name__ == "__main__":
    main()
