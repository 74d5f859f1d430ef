"""Can everybody install this? pip's resolver is asked, with the public package index alone.

    .venv/bin/python .ci/resolve.py

For each Python that pyproject.toml names and this machine has: the pinned versions of
constraints.txt, the lowest that pyproject.toml allows, and the newest; wheels only, as nobody
should need a compiler. Nothing is installed. One planted conflict must be seen, or the check itself
is at fault. Some minutes, most of them spent waiting for the index.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WANTED = "\n".join((*PROJECT["dependencies"], *(one for each in EXTRAS.values() for one in each)))
BOUNDS = dict(re.findall(r"(?m)^([\w.-]+)>=([\w.]+)", WANTED))
"""The lowest version of each package that pyproject.toml sets a bound for."""
CONFLICT = "planted conflict"
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def promised() -> list[str]:
    """The Pythons of the classifiers: 3.11 and so on."""
    found = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert found, "pyproject.toml names no Python"
    return found


def interpreter(version: str) -> str | None:
    """A program that is this Python, on the path or among pyenv's; None where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), sys.executable, *map(str, installed)):
        if candidate is None:
            continue
        asked = subprocess.run(
            [candidate, "-c", VERSION], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def lowest() -> str:
    """Every lower bound of pyproject.toml as a pin."""
    return "".join(f"{name}=={version}\n" for name, version in BOUNDS.items())


def planted() -> str:
    """The pins with a Triton that pyproject.toml allows and the pinned torch does not."""
    pins, lowest_triton = (ROOT / "constraints.txt").read_text(), f"triton=={BOUNDS['triton']}"
    changed = re.sub(r"(?m)^triton==.*$", lowest_triton, pins)
    assert changed != pins, f"{lowest_triton} is the pinned one: plant another version"
    return changed


def resolve(python: str, constraints: Path) -> subprocess.CompletedProcess[str]:
    """A dry run of this checkout with all of its extras; pip's own settings are left out."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    options = ["--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    # Where an index has no metadata beside its wheels, gigabytes are not fetched to read it.
    options += ["--use-feature", "fast-deps", "--constraint", str(constraints)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    public = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if "PIP_CERT" in os.environ:
        public["PIP_CERT"] = os.environ["PIP_CERT"]
    return subprocess.run(
        [*pip, *options, f"{ROOT}[{','.join(EXTRAS)}]"],
        env=clean | public,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def main() -> int:
    """Prints a line for each Python and set of versions; 1 where one is not as it should be."""
    pythons = {version: interpreter(version) for version in promised()}
    missing = [version for version, python in pythons.items() if python is None]
    if missing:
        print(f"not on this machine, so not tried: Python {', '.join(missing)}")
    pins = (ROOT / "constraints.txt").read_text()
    sets = {"pinned": pins, "lowest": lowest(), "newest": "", CONFLICT: planted()}
    here = [(version, python) for version, python in pythons.items() if python is not None]
    right = True
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(5) as pool:
        for name, text in sets.items():
            Path(folder, name).write_text(text)
        tried = {
            (version, name): pool.submit(resolve, python, Path(folder, name))
            for version, python in here
            for name in sets
            if name != CONFLICT or version == here[0][0]
        }
        for (version, name), done in tried.items():
            result = done.result()
            if name == CONFLICT:
                as_wanted = "ResolutionImpossible" in result.stderr
            else:
                as_wanted = result.returncode == 0
            said = "resolves" if result.returncode == 0 else "does not resolve"
            print(f"Python {version}, {name}: {said}{'' if as_wanted else '  <- WRONG'}")
            if not as_wanted:
                print("\n".join((result.stdout + result.stderr).splitlines()[-25:]))
            right &= as_wanted
    return 0 if right and tried else 1


if __name__ == "__main__":
    sys.exit(main())
