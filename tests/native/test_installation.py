"""Wheels and installations: with the library, for other systems, in place, without a compiler."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from native.compiled import (
    TESTS,
    compiled_program,
    interface,
    needs_compiler,
    needs_package,
    needs_programs,
    on_linux,
)
from native.digests import expected, run_driver
from pilotfish.kernels.native.building import TARGETS, Target, library_name, of_plugin

ROOT = TESTS.parents[1]
NATIVE = "pilotfish/kernels/native"
pytestmark = on_linux


def clean_copy(folder: Path) -> Path:
    """What a clone holds, without what was compiled in place."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("framework", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / ".gitignore", folder / ".gitignore")
    return folder


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "CXX", "PILOTFISH_NATIVE", "PILOTFISH_NATIVE_TARGET")
    also_hidden = ("PILOTFISH_NATIVE_LIBRARY", "PILOTFISH_INSTRUCTIONS")
    kept = {name: text for name, text in os.environ.items() if name not in hidden + also_hidden}
    return subprocess.run(
        list(map(str, command)),
        env=kept | environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """A wheel or sdist of a source tree, without the network."""
    command = ["-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source]
    done = run(sys.executable, *command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    return set(names)


def libraries(system: str) -> set[str]:
    """Of a wheel: the core's, and those of plugins with kernels of their own."""
    tables = (ROOT / "plugins").glob("*/*/**/native/kernels.h")
    folders = [table.parent.relative_to(ROOT / "plugins") for table in tables]
    plugins = {Path(*folder.parts[1:], of_plugin(folder).file_name(system)) for folder in folders}
    assert plugins
    return {f"{NATIVE}/{library_name(system)}", *(path.as_posix() for path in plugins)}


def metadata(wheel: Path) -> str:
    """The wheel's WHEEL file."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        return archive.read(name).decode()


@pytest.mark.slow
@needs_compiler
def test_a_wheel_from_an_sdist_holds_the_library_and_the_headers(tmp_path: Path) -> None:
    sdist = build("sdist", clean_copy(tmp_path / "copy"), tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert not list(source.rglob("*.so"))
    wheel = build("wheel", source, tmp_path / "wheel", PILOTFISH_NATIVE="require")
    system = f"linux_{platform.machine()}"
    assert wheel.name.endswith(f"-py3-none-{system}.whl")
    assert f"Tag: py3-none-{system}\n" in metadata(wheel)
    assert "Root-Is-Purelib: false\n" in metadata(wheel)
    found = members(wheel)
    sources = {f"{NATIVE}/source/main.cpp", f"{NATIVE}/source/exports.map"}
    headers = {f"{NATIVE}/include/pilotfish/op.h", "pilotfish/kernels/rms_norm/native.h"}
    assert found >= {f"{NATIVE}/{library_name()}", f"{NATIVE}/building.py"} | sources | headers
    assert {name for name in found if name.endswith(".so")} == libraries("linux")


def test_a_wheel_without_one_is_a_pure_one(tmp_path: Path) -> None:
    wheel = build("wheel", clean_copy(tmp_path / "copy"), tmp_path, PILOTFISH_NATIVE="skip")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true\n" in metadata(wheel)
    assert not [name for name in members(wheel) if name.endswith(".so")]


def test_a_required_library_that_cannot_be_compiled_is_no_wheel(tmp_path: Path) -> None:
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = run(sys.executable, *command, PILOTFISH_NATIVE="require", CXX="/no/such/compiler")
    assert done.returncode != 0
    assert "/no/such/compiler" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))


def fresh_environment(folder: Path) -> Path:
    """A virtual environment's Python, which can build without the network; no compiler in it."""
    venv.create(folder, with_pip=False, symlinks=True)
    tools = folder / "tools"
    tools.mkdir()
    site = Path(torch.__file__).parents[1]
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers"):
        for path in (*site.glob(name), *site.glob(f"{name}-*.dist-info")):
            (tools / path.name).symlink_to(path)
    return folder / "bin" / "python"


def install(python: Path, source: Path, *flags: str, **environment: str) -> str:
    """pip's words. What it builds with are the environment's tools alone."""
    tools = str(python.parents[1] / "tools")
    command = ["-m", "pip", "--python", python, "install", "-v", "--no-deps", "--no-index"]
    more = ["--no-build-isolation", "--disable-pip-version-check", *flags, source]
    done = run(sys.executable, *command, *more, PYTHONPATH=tools, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def lend_packages(python: Path) -> None:
    """torch and so on, once Pilotfish is installed."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(str(Path(torch.__file__).parents[1]))


ASK = "from pilotfish.kernels.native import library, why_not; print(library() is None, why_not())"


@pytest.mark.slow
def test_without_a_compiler_it_installs_says_so_and_runs(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    (tmp_path / "bin").mkdir()
    source = clean_copy(tmp_path / "copy")
    said = " ".join(install(python, source, PATH=str(tmp_path / "bin")).split())
    assert "The native CPU kernels were not compiled: no C++ compiler was found" in said
    assert "with torch's kernels: slower" in said
    assert "PILOTFISH_NATIVE=zig" in said
    lend_packages(python)
    done = run(python, "-c", ASK)
    assert done.stdout.startswith("True it was not compiled when the package was installed")
    pilotfish = python.with_name("pilotfish")
    sampling = ("--temperature", "0", "--max-tokens", "3", "--json")
    done = run(pilotfish, "generate", "demo", "--prompt", "One, two,", *sampling)
    assert done.returncode == 0, done.stderr
    assert '"finish_reason"' in done.stdout


@pytest.mark.slow
@needs_compiler
def test_an_installation_in_place_compiles_beside_the_sources(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    source = clean_copy(tmp_path / "copy")
    kernels = source / "framework" / NATIVE / "source/kernels.h"  # one, to be compiled at once
    kernels.write_text('#include "rms_norm/native.h"\n#define PF_KERNELS PF_KERNEL(rms_norm)\n')
    install(python, source, "--editable")
    lend_packages(python)
    library = source / "framework" / NATIVE / library_name()
    made = library.stat().st_mtime_ns
    assert run(python, "-c", ASK).stdout == "False \n"
    again = [python, source / "framework" / NATIVE / "building.py", "--if-stale"]
    done = run(*again)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert library.stat().st_mtime_ns == made
    # Another record in a header: the library that is there must not be called.
    header = source / "framework/pilotfish/kernels/rms_norm/native.h"
    header.write_text(header.read_text().replace("int64_t rows,", "int64_t extra, rows,", 1))
    said = run(python, "-c", ASK).stdout
    assert said.startswith("True it was compiled from other sources than there are now")
    assert "make setup" in said
    done = run(*again)
    assert done.returncode == 0
    assert "compiled" in done.stderr
    assert library.stat().st_mtime_ns != made
    assert run(python, "-c", ASK).stdout == "False \n"


def exported(library: Path, target: Target) -> set[str]:
    """Names that the library offers to others."""
    flags = {"linux": ["-D", "--defined-only"], "darwin": ["-g", "--defined-only"]}
    if target.system == "windows":
        command = ["objdump", "-p", str(library)]
    else:
        command = ["llvm-nm", *flags[target.system], str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\b_?(pf_(?!table)\w+)$", said, re.M))


@pytest.mark.slow
@needs_package("ziglang")
@needs_programs("llvm-nm", "objdump")
@pytest.mark.parametrize("name", TARGETS)
def test_a_wheel_for_another_system(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    wheel = build("wheel", ROOT, tmp_path, PILOTFISH_NATIVE_TARGET=name)
    assert wheel.name.endswith(f"-py3-none-{target.tag}.whl")
    file = f"{NATIVE}/{library_name(target.system)}"
    binary = (".so", ".dylib", ".dll")
    assert {one for one in members(wheel) if one.endswith(binary)} == libraries(target.system)
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract(file, tmp_path))
    assert exported(library, target) == interface()
    if target.system == "linux":
        runs_here(library, target)


def runs_here(library: Path, target: Target) -> None:
    """It gives the bits of digests.txt, on this machine or its emulator, and needs an old glibc."""
    listing = ["llvm-nm", "-D", "--undefined-only", str(library)]
    needed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    versions = [
        tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", needed)
    ]
    assert versions
    assert max(versions) <= (2, 28)
    if target.machine == platform.machine():
        found = run_driver(compiled_program("driver", ["driver.cpp"]), library, 2)
    elif shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-g++"):
        compiler = ["aarch64-linux-gnu-g++"]
        driver = compiled_program("driver-neon", ["driver.cpp"], compiler, target_machine="aarch64")
        under = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
        found = run_driver(driver, library, 2, under=under)
    else:
        return
    assert found == dict.fromkeys(found, expected())


def test_the_workflow_makes_and_runs_a_wheel_for_every_target() -> None:
    text = (ROOT / ".github/workflows/wheels.yml").read_text()
    listed = re.search(r"^ +target: \[(.*)\]$", text, re.M)
    assert listed is not None
    assert listed[1].split(", ") == list(TARGETS)
    assert re.findall(r"\{system: [\w.-]+, target: ([\w-]+)\}", text) == list(TARGETS)
